"""Back-ends on disk: one safetensors file, whose header says in JSON what the arrays are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from speakerkit.errors import ConfigError, DataError
from speakerkit.files import atomic_path
from speakerkit.verification.backend import KINDS, Backend, Kind
from speakerkit.verification.chain import load_chain
from speakerkit.verification.plda import NORMALISATIONS, Plda
from speakerkit.verification.psda import Psda
from speakerkit.verification.vectors import Floats

FORMAT = "speakerkit-plda-1"
METADATA = "speakerkit"  # one key, since the order of several would differ from file to file
CHAIN, MODEL = "chain.", "model."
MEMBERS: dict[Kind, tuple[str, ...]] = {"plda": ("mean", "transform", "psi"), "psda": ("mean", "between", "within")}


def write_backend(path: str | Path, backend: Backend) -> None:
    """Write a back-end, atomically; the same back-end gives the same bytes."""
    note = {
        "format": FORMAT,
        "kind": backend.kind,
        "chain": str(backend.chain),
        "dimension": backend.dimension,
        "extractor": backend.extractor,
        "normalise": backend.normalise,
        "history": list(backend.history),
    }
    arrays = {CHAIN + name: array for name, array in backend.chain.tensors().items()}
    for name in MEMBERS[backend.kind]:
        arrays[MODEL + name] = np.asarray(getattr(backend.model, name), dtype=np.float64)
    tensors = {name: np.array(array, dtype=np.float64, order="C") for name, array in arrays.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={METADATA: json.dumps(note, sort_keys=True, allow_nan=False)})


def read_backend(path: str | Path) -> Backend:
    """Read a back-end.

    Raises:
        DataError: missing, damaged, of another format, or with arrays that contradict each other.
    """
    if not Path(path).is_file():
        raise DataError(path, "no such file", "train one with `speakerkit plda train`")
    try:
        with safe_open(str(path), framework="numpy") as stream:
            metadata = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            path, f"is no back-end, or damaged ({error})", "train it anew, or `speakerkit plda import` a Kaldi PLDA"
        ) from None
    try:
        return _backend(json.loads(metadata[METADATA]), tensors)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError, ConfigError) as error:
        raise DataError(path, f"is no back-end of ours, or damaged ({error})", "train it anew") from None


def _backend(note: dict[str, Any], tensors: dict[str, Floats]) -> Backend:
    kind, dimension, extractor = note["kind"], note["dimension"], note["extractor"]
    normalise, history = note["normalise"], note["history"]
    if note["format"] != FORMAT or kind not in KINDS or normalise not in NORMALISATIONS:
        raise ValueError(f"format {note['format']!r}, kind {kind!r}")
    if not isinstance(dimension, int) or not isinstance(extractor, str | None) or not _is_history(history):
        raise ValueError("a header with values of the wrong kind")
    for name, array in tensors.items():
        if array.dtype != np.float64 or not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite float64")
    chain = load_chain(note["chain"], _under(CHAIN, tensors))
    arrays = _under(MODEL, tensors)
    if {*arrays} != {*MEMBERS[kind]} or len(arrays) + len(chain.tensors()) != len(tensors):
        raise ValueError(f"arrays {', '.join(sorted(tensors))}")
    model = Plda.stored(**arrays) if kind == "plda" else Psda.stored(**arrays)
    widths = [array.shape[-1] for step in chain.steps for array in (step.mean, step.matrix) if array is not None]
    outs = [len(step.matrix) for step in chain.steps if step.matrix is not None]
    if (widths or [model.dim])[0] != dimension or (outs or [dimension])[-1] != model.dim:
        raise ValueError(f"a chain that does not lead from {dimension} to {model.dim} values")
    return Backend(chain, model, dimension, extractor, normalise, tuple(history))


def _under(prefix: str, tensors: dict[str, Floats]) -> dict[str, Floats]:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}


def _is_history(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) and isinstance(row.get("event"), str) for row in value)
