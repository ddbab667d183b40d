"""Cosine scoring of trials."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from speakerkit.data.ark import Embeddings, read_array, read_embeddings
from speakerkit.errors import DataError
from speakerkit.verification.trials import Scores, Trials

Floats = npt.NDArray[np.float64]

# Below this share of its length, what is left of a float32 embedding after subtraction is rounding.
ROUNDING = 1e-7


def score_cosine(
    embeddings: Embeddings,
    trials: Trials,
    *,
    mean: npt.ArrayLike | None = None,
    enrol_embeddings: Embeddings | None = None,
    block: int = 4096,
) -> Scores:
    """Cosine of the two embeddings of each trial, in [-1, 1].

    Args:
        embeddings: embeddings of the test ids, and of the enrolment ids unless ``enrol_embeddings`` is given.
        trials: what to compare.
        mean: (dim,) subtracted from both sides first, see :func:`embedding_mean`.
        enrol_embeddings: embeddings of the enrolment ids.
        block: trials scored at once; memory beside the embeddings is about 2 x block x dim x 8 bytes.

    Raises:
        DataError: a trial names a key without embedding, dimensions differ, or an embedding has no direction
            (zero, or equal to the mean).
    """
    enrol_source = embeddings if enrol_embeddings is None else enrol_embeddings
    if enrol_source.dim != embeddings.dim:
        raise DataError(
            enrol_source.source,
            f"has {enrol_source.dim} values a row, {embeddings.source} {embeddings.dim}",
            "both sides must come from one model",
        )
    enrol = _directions(enrol_source, trials.enrol_ids, mean)  # (enrolments, dim)
    test = _directions(embeddings, trials.test_ids, mean)  # (tests, dim)
    scores = np.empty(len(trials))
    for start in range(0, len(trials), block):
        part = slice(start, start + block)
        np.einsum("td,td->t", enrol[trials.enrol[part]], test[trials.test[part]], out=scores[part])
    return Scores(trials, np.clip(scores, -1.0, 1.0, out=scores))


def embedding_mean(embeddings: Embeddings) -> Floats:
    """Mean (dim,) of a set, in float64; that of the training set centres embeddings before scoring."""
    return embeddings.vectors.mean(axis=0, dtype=np.float64)


def read_mean(path: str | Path) -> Floats:
    """Read a mean (dim,) from a ``.npy`` vector, or compute it from a file of embeddings.

    Raises:
        DataError: the file is missing or malformed.
    """
    path = Path(path)
    if path.suffix != ".npy":
        return embedding_mean(read_embeddings(path))
    array = read_array(path)
    return embedding_mean(read_embeddings(path)) if array.ndim == 2 else array.astype(np.float64)


def require_one_model(*paths: str | Path) -> None:
    """Compare the models that ``STEM.model.json`` beside each file names; files without one are taken on trust.

    Raises:
        DataError: two files come from different models; names both.
    """
    known: tuple[Path, str] | None = None
    for path in map(Path, paths):
        digest = _model_digest(path)
        if digest is None:
            continue
        if known is not None and known[1] != digest:
            raise DataError(path, f"was made by another model than {known[0]}", "extract both with one model")
        known = known or (path, digest)


def _model_digest(path: Path) -> str | None:
    """Hash of the model that made ``path``, as ``embed`` notes it; ``None`` where there is no note."""
    note = path.with_name(f"{path.stem}.model.json")
    try:
        digest = json.loads(note.read_text(encoding="utf-8"))["sha256"]
    except OSError:
        return None
    except (ValueError, RecursionError, KeyError, TypeError):
        digest = None
    if not isinstance(digest, str):
        raise DataError(note, "does not tell which model it stands for", f"extract {path.name} again")
    return digest


def _directions(embeddings: Embeddings, keys: tuple[str, ...], mean: npt.ArrayLike | None) -> Floats:
    """Centred embeddings (keys, dim) of length one."""
    vectors = embeddings.vectors[embeddings.rows(keys)].astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1)
    centred_lengths = lengths
    if mean is not None:
        centre = np.asarray(mean, dtype=np.float64)
        if centre.shape != (embeddings.dim,) or not np.isfinite(centre).all():
            raise DataError(
                embeddings.source,
                f"has {embeddings.dim} values a row, the mean has shape {centre.shape} (or is not finite)",
                "take the mean of embeddings of the same model",
            )
        vectors -= centre
        centred_lengths = np.linalg.norm(vectors, axis=1)
    bad = (lengths == 0) | (centred_lengths <= ROUNDING * lengths)
    if bad.any():
        raise DataError(
            embeddings.source,
            f"embedding {keys[int(np.argmax(bad))]!r} has no direction: it is zero or equals the mean "
            f"({np.sum(bad)} of {len(bad)})",
            "extract it again, and take the mean over more than one embedding",
        )
    vectors /= centred_lengths[:, None]
    return vectors
