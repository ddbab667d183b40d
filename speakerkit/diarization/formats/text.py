"""What the formats share: names and times as text, and errors that name file and line."""

from __future__ import annotations

import codecs
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from speakerkit.diarization.turns import Diarization, Turn
from speakerkit.errors import DataError

MISSING = "<NA>"  # NIST's word for a field that says nothing
LONGEST_RECORDING = 1e7  # seconds (116 days): a time beyond is damage, or not in seconds
LETTERS = {"A": 1, "B": 2}
CONTROLS = (
    r"\x00-\x1f\x7f-\x9f\u2028\u2029"  # what breaks or hides lines; no format but JSON and TextGrid could hold it
)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
ESCAPED = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
DECIMALS = 9  # of sums of times: finer than any file's, coarser than the dust of binary fractions


def rounded(diarization: Diarization) -> Diarization:
    """The turns as every format writes them: on whole milliseconds, no shorter than one, inside the recording.

    Turns of one speaker that meet on that grid are one, so all formats hold the same turns. Confidences have three
    decimals; the duration is rounded down.

    Raises:
        DataError: a recording shorter than a millisecond, or a name that is no text.
    """
    for name in (diarization.recording, *diarization.labels):
        require_text(name, diarization.recording)
    limit = None if diarization.duration is None else math.floor(diarization.duration * 1000 + 1e-6)
    if limit == 0 and diarization.turns:
        raise DataError(diarization.recording, "is shorter than a millisecond", "formats have no finer times")
    return Diarization(
        diarization.recording,
        tuple(_rounded(turn, limit) for turn in diarization.turns),
        None if limit is None else limit / 1000,
        diarization.channel,
        diarization.speakers,
        diarization.settings,
    )


def _rounded(turn: Turn, limit: int | None) -> Turn:
    start, end = round(turn.start * 1000), round(turn.end * 1000)
    end = max(end, start + 1)
    if limit is not None and end > limit:
        start, end = min(start, limit - 1), limit
    confidence = None if turn.confidence is None else round(turn.confidence, 3)
    return Turn(start / 1000, end / 1000, turn.speaker, confidence)


def require_text(name: str, recording: str) -> None:
    """Raise DataError for a name that is empty, or holds what is no Unicode text."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(recording, f"has the name {name[:100]!r}, which is no text", "rename it") from None
    if not name:
        raise DataError(None, "a recording without name cannot be written", "name it")


def escape(name: str, unsafe: str = "") -> str:
    """``name`` with characters that a format cannot hold as percent and two hexadecimal digits for each UTF-8 byte.

    Args:
        unsafe: such characters beside controls, as in a regular expression's brackets. A percent sign is escaped where
            two such digits follow, so that :func:`unescape` gives every name back.
    """
    return re.sub(rf"[{CONTROLS}{unsafe}]|%(?=[0-9A-Fa-f]{{2}})", _percent, name)


def file_name(recording: str) -> str:
    """A recording's id as the name of a file, without what some file systems refuse; :func:`stem` undoes it."""
    return escape(recording, r"/\\:*?\"<>|")


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match.group().encode("utf-8"))


def unescape(name: str) -> str:
    """Undo :func:`escape`; what would be no UTF-8 is left as it is."""
    return ESCAPED.sub(_plain, name)


def _plain(match: re.Match[str]) -> str:
    try:
        return bytes.fromhex(match.group().replace("%", "")).decode("utf-8")
    except UnicodeDecodeError:
        return match.group()


def read_text(path: str | Path) -> str:
    """A text file, UTF-8 or (where it starts with the mark of it) UTF-16, with ``\\n`` between lines.

    Raises:
        DataError: a file that is missing, unreadable or no text.
    """
    try:
        content = Path(path).read_bytes()
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except FileNotFoundError:
        raise DataError(path, "no such file", "check the path") from None
    except IsADirectoryError:
        raise DataError(path, "is a directory", "name a file") from None
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise DataError(path, f"line {number} is no text", "it must be UTF-8") from None
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror})", "check the permissions") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


@dataclass(frozen=True)
class Place:
    """A line of a file, for errors to name."""

    path: str | Path
    line: int

    def error(self, fault: str, remedy: str) -> DataError:
        """An error at this line."""
        return DataError(self.path, f"line {self.line} {fault}", remedy)

    def seconds(self, word: str) -> float:
        """A time.

        Raises:
            DataError: not a number, negative, or beyond what any recording lasts.
        """
        value = float(word) if NUMBER.fullmatch(word) else math.nan
        if not 0 <= value <= LONGEST_RECORDING:
            raise self.error(
                f"has the time {word[:50]!r}", f"times are seconds from 0, no more than {LONGEST_RECORDING:.0f}"
            )
        return value

    def confidence(self, word: str) -> float | None:
        """A confidence in [0, 1]; none for what stands for nothing."""
        if word in ("", MISSING, "null"):
            return None
        value = float(word) if NUMBER.fullmatch(word) else math.nan
        if not 0 <= value <= 1:
            raise self.error(f"has the confidence {word[:50]!r}", "it lies between 0 and 1")
        return value

    def channel(self, word: str) -> int:
        """A channel's number; letters, which stand for the sides of a telephone call, count from A.

        Raises:
            DataError: neither number nor letter.
        """
        if word in ("", MISSING):
            return 1
        if word in LETTERS:
            return LETTERS[word]
        if not (word.isascii() and word.isdigit() and len(word) < 6):
            raise self.error(f"has the channel {word[:50]!r}", "channels are numbers")
        return int(word)

    def turn(self, start: float, end: float, speaker: str, confidence: float | None = None) -> Turn:
        """A turn.

        Raises:
            DataError: it ends before it starts, or has no speaker.
        """
        if end < start:
            raise self.error(f"ends ({end:g} s) before it starts ({start:g} s)", "swap the times")
        if not speaker:
            raise self.error("has no speaker", "name one")
        return Turn(start, end, speaker, confidence)


def numbered(path: str | Path) -> Iterator[tuple[Place, str]]:
    """Lines of a text file with their places; empty ones are left out."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield Place(path, number), line


@dataclass
class Collected:
    """Turns by recording and channel, as a reader finds them."""

    path: str | Path
    turns: dict[tuple[str, int], list[Turn]] = field(default_factory=dict)

    def add(self, recording: str, turn: Turn, channel: int = 1) -> None:
        """One more turn."""
        self.turns.setdefault((recording, channel), []).append(turn)

    def diarizations(self) -> dict[str, Diarization]:
        """One a recording; a file without a turn is of a recording of its own name, in which nobody speaks."""
        if not self.turns:
            return by_key([Diarization(stem(self.path))], self.path)
        found = (Diarization(name, tuple(turns), channel=channel) for (name, channel), turns in self.turns.items())
        return by_key(found, self.path)


def stem(path: str | Path) -> str:
    """The recording that a file is of, where it does not say so itself: its name without suffix."""
    return unescape(Path(path).stem)


def by_key(diarizations: Iterable[Diarization], path: str | Path) -> dict[str, Diarization]:
    """By recording, or ``recording:channel`` where there are several channels of one; sorted.

    Raises:
        DataError: a recording (and channel) that comes twice, or is called like a channel of another.
    """
    listed = sorted(diarizations, key=lambda each: (each.recording, each.channel))
    channels = Counter(each.recording for each in listed)
    found: dict[str, Diarization] = {}
    for each in listed:
        key = each.recording if channels[each.recording] == 1 else f"{each.recording}:{each.channel}"
        if key in found:
            raise DataError(path, f"recording {each.recording[:200]!r} comes twice", "keep one of them")
        found[key] = each
    return found
