"""Corpora as distributed to Kaldi data directories: one module a corpus, registered by name in ``CORPORA``."""

from __future__ import annotations

from pathlib import Path

from speakerkit.data.prepare import callhome, folder, librimix, librispeech, musan, rirs, voxceleb
from speakerkit.data.prepare.corpus import CORPORA, Preparation, Prepared

__all__ = [
    "CORPORA",
    "Preparation",
    "Prepared",
    "callhome",
    "folder",
    "librimix",
    "librispeech",
    "musan",
    "prepare_corpus",
    "rirs",
    "voxceleb",
]


def prepare_corpus(
    corpus: str,
    root: str | Path,
    out: str | Path,
    *,
    subset: str | None = None,
    trials: str | None = None,
    workers: int = 8,
) -> Prepared:
    """Write the data directory ``out`` of a corpus under ``root``; ``CORPORA`` lists the names.

    Args:
        subset: a part of the corpus, as its module names them; ``None`` is the module's default.
        trials: "all-pairs", a list to convert, or ``None`` for those that come with the corpus.
        workers: threads that read headers.

    Returns:
        What was written. Files with no readable header are left out and stand in ``failed`` and ``OUT/failed.tsv``.

    Raises:
        DataError: a root that is missing or holds nothing of the layout, ids that clash, trials without audio.
        ConfigError: no such corpus.
    """
    return CORPORA[corpus](Path(root), Path(out), subset=subset, trials=trials, workers=workers)
