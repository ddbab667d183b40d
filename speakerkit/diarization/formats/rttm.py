"""RTTM: a line a turn, of any number of recordings; and UEM, the regions of recordings that count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from speakerkit.diarization.formats.text import (
    DECIMALS,
    MISSING,
    Collected,
    Place,
    escape,
    numbered,
    require_text,
    rounded,
    unescape,
)
from speakerkit.diarization.turns import Diarization, Span, Turn, regions

UNSAFE = r"\s\u0080-\U0010ffff"  # fields are divided by blanks, and not every tool reads more than ASCII
# Record types that NIST's format has beside SPEAKER; what they say is not about turns.
OTHER_TYPES = {
    "SEGMENT", "NOSCORE", "NO_RT_METADATA", "LEXEME", "NON-LEX", "NON-SPEECH", "FILLER", "EDIT", "IP", "SU", "CB",
    "A/P", "SPKR-INFO",
}  # fmt: skip
COMMENT = ";;"


def write_rttm(diarizations: Iterable[Diarization]) -> str:
    """RTTM: milliseconds, sorted within a recording; the confidence in its own field where there is one."""
    lines = []
    for each in map(rounded, diarizations):
        recording = name_field(each.recording)
        for turn in each.turns:
            confidence = MISSING if turn.confidence is None else f"{turn.confidence:.3f}"
            lines.append(
                f"SPEAKER {recording} {each.channel} {turn.start:.3f} {turn.seconds:.3f} {MISSING} {MISSING} "
                f"{name_field(turn.speaker)} {confidence} {MISSING}\n"
            )
    return "".join(lines)


def read_rttm(path: str | Path) -> dict[str, Diarization]:
    """Turns of an RTTM file, by recording; records of other types are passed over, turns of no length too.

    Raises:
        DataError: a line that is no RTTM.
    """
    found = Collected(path)
    for place, line in numbered(path):
        fields = line.split()
        if fields[0].startswith(COMMENT) or fields[0] in OTHER_TYPES:
            continue
        if fields[0] != "SPEAKER":
            raise place.error(f"starts with {fields[0][:50]!r}", "a turn's line starts with SPEAKER")
        if not 8 <= len(fields) <= 10:
            raise place.error(
                f"has {len(fields)} fields",
                "they are: SPEAKER recording channel start duration <NA> <NA> speaker <NA> <NA>, names without blanks",
            )
        recording, channel = unescape(fields[1]), place.channel(fields[2])
        found.add(recording, _turn(place, fields), channel)
    return found.diarizations()


def _turn(place: Place, fields: list[str]) -> Turn:
    start = place.seconds(fields[3])
    end = round(start + place.seconds(fields[4]), DECIMALS)
    confidence = place.confidence(fields[8]) if len(fields) > 8 else None
    return place.turn(start, end, "" if fields[7] == MISSING else unescape(fields[7]), confidence)


def name_field(name: str) -> str:
    """A name as a field: blanks and what is not ASCII escaped, and a name that would stand for nothing."""
    return "%3CNA>" if name == MISSING else escape(name, UNSAFE)


def write_uem(spans: Mapping[str, Iterable[Span]]) -> str:
    """UEM: a line ``recording channel start end`` a region, in milliseconds, sorted."""
    for recording in spans:
        require_text(recording, recording)
    return "".join(
        f"{name_field(recording)} 1 {start:.3f} {end:.3f}\n"
        for recording in sorted(spans)
        for start, end in sorted(spans[recording])
    )


def read_uem(path: str | Path) -> dict[str, tuple[Span, ...]]:
    """Regions to score of each recording, sorted and disjoint.

    Raises:
        DataError: a line that is no UEM, a region without length, or no region at all.
    """
    found: dict[str, list[Turn]] = {}
    place = Place(path, 1)
    for place, line in numbered(path):
        if line.startswith(COMMENT):
            continue
        fields = line.split()
        if len(fields) != 4:
            raise place.error(f"has {len(fields)} fields", "they are: recording channel start end")
        place.channel(fields[1])
        start, end = place.seconds(fields[2]), place.seconds(fields[3])
        if end <= start:
            raise place.error(f"has a region from {start:g} to {end:g} s", "regions have a length")
        found.setdefault(unescape(fields[0]), []).append(Turn(start, end, "region"))
    if not found:
        raise place.error("is the last, and no region stands before it", "a line is: recording channel start end")
    return {recording: regions(turns, at_least=1) for recording, turns in sorted(found.items())}
