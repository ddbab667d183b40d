"""LibriSpeech and whatever has its layout: ``[SUBSET/]SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac``."""

from __future__ import annotations

import re
from pathlib import Path

from speakerkit.data.lists import Utterance, write_table
from speakerkit.data.prepare.corpus import CORPORA, Prepared, find_audio, under, write_corpus
from speakerkit.data.sources import GENDERS, read_genders
from speakerkit.errors import DataError

LAYOUT = re.compile(r"(?:^|/)(?P<speaker>\d+)/(?P<chapter>\d+)/(?P<key>(?P=speaker)-(?P=chapter)-\w+)\.(?:flac|wav)$")
SPEAKERS = "SPEAKERS.TXT"


@CORPORA.register("librispeech")
def prepare(
    root: Path, out: Path, *, subset: str | None = None, trials: str | None = None, workers: int = 8
) -> Prepared:
    """LibriSpeech; the key is the file's name without its suffix.

    ``root`` is one subset or holds several; ``subset`` ("train-clean-100") takes one of them, the default all. Where
    SPEAKERS.TXT lies in ``root`` or beside it, ``spk2gender`` is written, too.

    Raises:
        DataError: nothing of that layout, or one utterance twice.
    """
    utterances: dict[str, Utterance] = {}
    for relative in find_audio(root, {".flac", ".wav"}):
        match = LAYOUT.search(relative)
        if match is None or (subset is not None and not under(f"{root.absolute().name}/{relative}", subset)):
            continue
        key = match["key"]
        if key in utterances:
            raise DataError(root, f"{key!r} lies in {utterances[key].wav} and {relative}", "name one with --subset")
        utterances[key] = Utterance(key, match["speaker"], relative)
    prepared = write_corpus(
        root,
        out,
        list(utterances.values()),
        expected=f"{subset + '/' if subset else ''}SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac",
        trials={"trials": trials} if trials else None,
        workers=workers,
    )
    listed = next((place for place in (root / SPEAKERS, root.absolute().parent / SPEAKERS) if place.is_file()), None)
    if listed is not None:
        genders = read_genders(listed)
        known = {utterance.speaker for utterance in utterances.values()} & genders.keys()
        write_table(out / GENDERS, {speaker: genders[speaker].lower() for speaker in known})
    return prepared
