"""Praat's TextGrid: a tier a speaker, of one recording."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from speakerkit.diarization.formats.text import NUMBER, Place, escape, read_text, rounded, stem, unescape
from speakerkit.diarization.turns import Diarization, Turn
from speakerkit.errors import DataError

# Praat reads numbers, strings and flags that stand alone, and takes the rest (`xmin =`, `[1]:`) for decoration.
TOKEN = re.compile(r'(?P<comment>![^\n]*)|(?P<string>"(?:[^"]|"")*")|(?P<flag><[^>\n]*>)|(?P<word>[^\s"]+)', re.ASCII)
INTERVALS, POINTS = "IntervalTier", "TextTier"


def write_textgrid(diarization: Diarization) -> str:
    """A TextGrid in Praat's long form; it ends with the recording, or with the last turn where that is not known."""
    written = rounded(diarization)
    end = written.duration or max((turn.end for turn in written.turns), default=0.001)
    labels = written.labels or ("",)  # Praat opens no TextGrid without a tier
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {end:.3f}"]
    lines += ["tiers? <exists>", f"size = {len(labels)}", "item []:"]
    for number, label in enumerate(labels, start=1):
        lines.append(f"    item [{number}]:")
        lines += _tier(label, [turn for turn in written.turns if turn.speaker == label], end)
    return "\n".join(lines) + "\n"


def _tier(label: str, turns: list[Turn], end: float) -> list[str]:
    intervals = _filled(turns, end)
    lines = [
        f'        class = "{INTERVALS}"',
        f"        name = {_quoted(label)}",
        "        xmin = 0",
        f"        xmax = {end:.3f}",
        f"        intervals: size = {len(intervals)}",
    ]
    for number, (first, last, text) in enumerate(intervals, start=1):
        lines.append(f"        intervals [{number}]:")
        lines += [f"            xmin = {first:.3f}", f"            xmax = {last:.3f}", f"            text = {text}"]
    return lines


def _filled(turns: list[Turn], end: float) -> list[tuple[float, float, str]]:
    """The turns with the gaps between them: intervals of a tier leave nothing out."""
    intervals, reached = [], 0.0
    for turn in turns:
        if turn.start > reached:
            intervals.append((reached, turn.start, '""'))
        intervals.append((turn.start, turn.end, _quoted(turn.speaker if turn.speaker.strip() else "speech")))
        reached = turn.end
    if reached < end:
        intervals.append((reached, end, '""'))
    return intervals


def _quoted(text: str) -> str:
    return '"' + escape(text).replace('"', '""') + '"'


@dataclass(frozen=True)
class Token:
    """A number, string or flag of a TextGrid, and its line."""

    kind: str
    text: str
    place: Place


class _Tokens:
    """What stands alone in the file, one after the other."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._tokens = self._found(read_text(path))
        self._last = Place(path, 1)

    def _found(self, text: str) -> Iterator[Token]:
        line, reached = 1, 0
        for match in TOKEN.finditer(text):
            line += text.count("\n", reached, match.start())
            reached = match.start()
            kind, content = str(match.lastgroup), match.group()
            if kind == "word" and NUMBER.fullmatch(content):
                kind = "number"
            if kind in ("number", "string", "flag"):
                yield Token(kind, content, Place(self._path, line))

    def take(self, kind: str, meaning: str) -> Token:
        token = next(self._tokens, None)
        if token is None:
            raise self._last.error(f"is the last, where {meaning} should follow", "the file is cut off; write it again")
        self._last = token.place
        if token.kind != kind:
            raise token.place.error(f"has {token.text[:50]!r} where {meaning} should be", "save it again from Praat")
        return token

    def string(self, meaning: str) -> str:
        return self.take("string", meaning).text[1:-1].replace('""', '"')

    def seconds(self, meaning: str) -> float:
        token = self.take("number", meaning)
        return token.place.seconds(token.text)

    def count(self, meaning: str) -> int:
        token = self.take("number", meaning)
        if not token.text.isdigit() or len(token.text) > 9:
            raise token.place.error(f"has {token.text[:50]!r} for {meaning}", "it is a whole number")
        return int(token.text)

    @property
    def place(self) -> Place:
        return self._last


def read_textgrid(path: str | Path) -> dict[str, Diarization]:
    """Turns of a TextGrid (long or short text form): intervals with a text, whatever it is, by their tiers' names.

    Tiers of points are passed over. The recording lasts as long as the TextGrid.

    Raises:
        DataError: no TextGrid, or a damaged one; also the binary form.
    """
    if _head(path).startswith(b"ooBinaryFile"):
        raise DataError(path, "is a binary TextGrid", "save it as a text file in Praat")
    tokens = _Tokens(path)
    if tokens.string("ooTextFile") != "ooTextFile" or tokens.string("TextGrid") != "TextGrid":
        raise DataError(path, "is no TextGrid", "save it as a text file in Praat")
    _, end = tokens.seconds("the start"), tokens.seconds("the end")
    turns: list[Turn] = []
    if tokens.take("flag", "<exists>").text == "<exists>":
        for _ in range(tokens.count("the number of tiers")):
            turns += _read_tier(tokens, end)
    return {stem(path): Diarization(stem(path), tuple(turns), end or None)}


def _head(path: str | Path) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(12)
    except OSError:
        return b""  # read_text says what is wrong


def _read_tier(tokens: _Tokens, limit: float) -> list[Turn]:
    kind, name = tokens.string("a tier's class"), unescape(tokens.string("a tier's name"))
    if kind not in (INTERVALS, POINTS):
        raise tokens.place.error(f"follows a tier of class {kind[:50]!r}", f"classes are {INTERVALS} and {POINTS}")
    tokens.seconds("a tier's start")
    tokens.seconds("a tier's end")
    turns = []
    for _ in range(tokens.count("the number of intervals")):
        start = tokens.seconds("a time")
        end = tokens.seconds("an interval's end") if kind == INTERVALS else start
        text, place = tokens.string("a text"), tokens.place
        if end > limit:
            raise place.error(f"ends an interval at {end:g} s, after the end at {limit:g} s", "mend one of them")
        if text.strip() and kind == INTERVALS:
            turns.append(place.turn(start, end, name))
    return turns
