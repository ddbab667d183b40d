"""A line a turn of one recording: LAB (start, end and speaker, divided by blanks), Audacity's labels (by tabs)."""

from __future__ import annotations

from pathlib import Path

from speakerkit.diarization.formats.rttm import UNSAFE
from speakerkit.diarization.formats.text import Collected, escape, numbered, rounded, stem, unescape
from speakerkit.diarization.turns import Diarization


def write_lab(diarization: Diarization) -> str:
    """``start end speaker``, seconds; names escaped as in RTTM."""
    return "".join(
        f"{turn.start:.3f} {turn.end:.3f} {escape(turn.speaker, UNSAFE)}\n" for turn in rounded(diarization).turns
    )


def read_lab(path: str | Path) -> dict[str, Diarization]:
    """Turns of a LAB file.

    Raises:
        DataError: a line that is none.
    """
    found = Collected(path)
    for place, line in numbered(path):
        fields = line.split()
        if len(fields) != 3:
            raise place.error(f"has {len(fields)} fields", "they are: start end speaker, names without blanks")
        start, end = place.seconds(fields[0]), place.seconds(fields[1])
        found.add(stem(path), place.turn(start, end, unescape(fields[2])))
    return found.diarizations()


def write_audacity(diarization: Diarization) -> str:
    """A label track for Audacity's File > Import > Labels."""
    return "".join(f"{turn.start:.3f}\t{turn.end:.3f}\t{escape(turn.speaker)}\n" for turn in rounded(diarization).turns)


def read_audacity(path: str | Path) -> dict[str, Diarization]:
    """Turns of a label track; lines of frequencies (they start with a backslash) are passed over.

    Raises:
        DataError: a line that is no label.
    """
    found = Collected(path)
    for place, line in numbered(path):
        if line.startswith("\\"):
            continue
        fields = line.split("\t")
        if len(fields) != 3:
            raise place.error(f"has {len(fields)} columns", "they are start, end and speaker, divided by tabs")
        start, end = place.seconds(fields[0]), place.seconds(fields[1])
        found.add(stem(path), place.turn(start, end, unescape(fields[2])))
    return found.diarizations()
