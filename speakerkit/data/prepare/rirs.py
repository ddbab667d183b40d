"""RIRS_NOISES (OpenSLR 28): simulated and real room responses, point-source and isotropic noises; or any RIR folder."""

from __future__ import annotations

from pathlib import Path

from speakerkit.data.prepare.corpus import CORPORA, Prepared, find_audio, safe_id, unique_key, write_noises
from speakerkit.errors import DataError

REAL = "real_rirs_isotropic_noises"
SUBSETS = {  # name: its folder in RIRS_NOISES, its type
    "simulated": ("simulated_rirs", "rir"),
    "real": (REAL, "rir"),
    "pointsource": ("pointsource_noises", "noise"),
    "isotropic": (REAL, "noise"),
}
DEFAULT = ("simulated", "real")


@CORPORA.register("rirs")
def prepare(
    root: Path, out: Path, *, subset: str | None = None, trials: str | None = None, workers: int = 8
) -> Prepared:
    """Room responses: RIRS_NOISES, or every file of a folder that does not have its layout.

    ``subset`` is "simulated" (keys ``smallroom/Room001/Room001-00001.wav``), "real" (``real/x.wav``), both by
    default, or its noises, "pointsource" and "isotropic" (``noise/x.wav``). Other folders have keys ``rir/x.wav``.
    """
    if subset is not None and subset not in SUBSETS:
        raise DataError("--subset", f"{subset!r} is no part of RIRS_NOISES", f"choose from {', '.join(SUBSETS)}")
    found = [f"{root.absolute().name}/{relative}" for relative in find_audio(root)]
    types: dict[str, tuple[str, str]] = {}
    for name in DEFAULT if subset is None else (subset,):
        folder, kind = SUBSETS[name]
        for path in found:
            _, middle, tail = path.partition(f"{folder}/")
            if middle and not (folder == REAL and ("noise" in tail) != (kind == "noise")):
                types[unique_key(types, _key(name, tail), root)] = path.partition("/")[2], kind
    if not types and subset is None:
        for path in found:
            relative = path.partition("/")[2]
            types[unique_key(types, f"rir/{safe_id(relative)}", root)] = relative, "rir"
    return write_noises(
        root, out, types, expected="room responses (RIRS_NOISES or a folder)", trials=trials, workers=workers
    )


def _key(subset: str, tail: str) -> str:
    prefix = {"simulated": "", "real": "real/"}.get(subset, "noise/")
    return prefix + safe_id(tail)
