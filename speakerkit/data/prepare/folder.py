"""Any corpus with a folder per speaker: ``SPEAKER/**/x.wav``."""

from __future__ import annotations

from pathlib import Path

from speakerkit.data.lists import Utterance
from speakerkit.data.prepare.corpus import CORPORA, Prepared, find_audio, safe_id, write_corpus
from speakerkit.errors import DataError


@CORPORA.register("folder")
def prepare(
    root: Path, out: Path, *, subset: str | None = None, trials: str | None = None, workers: int = 8
) -> Prepared:
    """A folder per speaker, whatever lies deeper; the key is the path below ``root``.

    Blanks in speakers and keys become underscores. ``subset`` is a folder of ``root`` that holds the speakers.

    Raises:
        DataError: no audio in folders, or two speakers whose names differ in their blanks only.
    """
    root = root / subset if subset else root
    found = find_audio(root)
    utterances: list[Utterance] = []
    names: dict[str, str] = {}
    for relative in found:
        folder, slash, _ = relative.partition("/")
        if not slash:
            continue
        speaker = safe_id(folder)
        if names.setdefault(speaker, folder) != folder:
            raise DataError(
                root, f"the folders {names[speaker]!r} and {folder!r} have one id, {speaker!r}", "rename one of them"
            )
        utterances.append(Utterance(safe_id(relative), speaker, relative))
    loose = len(found) - len(utterances)
    return write_corpus(
        root,
        out,
        utterances,
        expected="SPEAKER/x.wav",
        trials={"trials": trials} if trials else None,
        workers=workers,
        notes=[f"{loose} audio files lie in no speaker's folder and were left out"] if loose else [],
    )
