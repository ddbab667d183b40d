"""MUSAN (``noise|music|speech/SOURCE/x.wav``), and any folder of noises."""

from __future__ import annotations

from pathlib import Path

from speakerkit.data.prepare.corpus import CORPORA, Prepared, find_audio, safe_id, unique_key, write_noises
from speakerkit.errors import DataError

TYPES = ("noise", "music", "speech")


@CORPORA.register("musan")
def prepare(
    root: Path, out: Path, *, subset: str | None = None, trials: str | None = None, workers: int = 8
) -> Prepared:
    """MUSAN; the key is ``noise/free-sound/noise-free-sound-0000.wav``, its first part the type.

    ``subset`` is one of the types; the default is all three.
    """
    wanted = TYPES if subset is None else (_known_type(subset),)
    types: dict[str, tuple[str, str]] = {}
    for relative in find_audio(root):
        parts = f"{root.absolute().name}/{relative}".split("/")
        first = next((place for place, part in enumerate(parts[:-1]) if part in TYPES), None)
        if first is not None and parts[first] in wanted:
            key = unique_key(types, safe_id("/".join(parts[first:])), root)
            types[key] = relative, parts[first]
    return write_noises(root, out, types, expected="noise|music|speech/SOURCE/x.wav", trials=trials, workers=workers)


@CORPORA.register("noise")
def prepare_noises(
    root: Path, out: Path, *, subset: str | None = None, trials: str | None = None, workers: int = 8
) -> Prepared:
    """Any folder of noises, flat or not; ``subset`` is their type (noise, music or speech; the default is noise).

    The key is the type and the path below ``root``: ``noise/x.wav``. Also for pointsource_noises of RIRS_NOISES.
    """
    kind = _known_type(subset or "noise")
    types: dict[str, tuple[str, str]] = {}
    for relative in find_audio(root):
        types[unique_key(types, f"{kind}/{safe_id(relative)}", root)] = relative, kind
    return write_noises(root, out, types, expected="a folder of audio files", trials=trials, workers=workers)


def _known_type(kind: str) -> str:
    if kind not in TYPES:
        raise DataError("--subset", f"{kind!r} is no type of noise", f"choose from {', '.join(TYPES)}")
    return kind
