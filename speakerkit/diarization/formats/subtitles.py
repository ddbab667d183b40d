"""Subtitles, SRT and WebVTT: a cue a turn of one recording, its text the speaker's name."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

from speakerkit.diarization.formats.text import Collected, Place, escape, read_text, rounded, stem, unescape
from speakerkit.diarization.turns import Diarization, Turn

STAMP = re.compile(r"(?:(\d{1,6}):)?([0-5]\d):([0-5]\d)[.,](\d{3})", re.ASCII)
BRACKETED = re.compile(r"\[([^\]]+)\]")  # as here and in WhisperX
PREFIXED = re.compile(r"([^:<]{1,100}):(?:\s|$)")  # NAME: what was said
VOICE = re.compile(r"<v(?:\.[^\s>]*)?[ \t]([^>]+)>")
EDGES = re.compile(r"^ +| +$| (?= )")  # blanks that WebVTT takes out of names
HEADER = "WEBVTT"
UNSAFE = r"<>\]"  # SubRip: tags, arrows, and what closes a name


def write_srt(diarization: Diarization) -> str:
    """SubRip: ``[speaker]`` for each turn; closing and angle brackets in names are escaped."""
    return "\n".join(
        f"{number}\n{_stamp(turn.start, ',')} --> {_stamp(turn.end, ',')}\n[{escape(turn.speaker, UNSAFE)}]\n"
        for number, turn in enumerate(rounded(diarization).turns, start=1)
    )


def write_vtt(diarization: Diarization) -> str:
    """WebVTT: ``<v speaker>speaker</v>`` for each turn, a voice that players can style."""
    cues = [f"{HEADER}\n"]
    for turn in rounded(diarization).turns:
        name = html.escape(escape(turn.speaker), quote=False)
        voice = EDGES.sub(lambda match: "%20" * len(match.group()), name)
        cues.append(f"{_stamp(turn.start, '.')} --> {_stamp(turn.end, '.')}\n<v {voice}>{name}</v>\n")
    return "\n".join(cues)


def _stamp(seconds: float, point: str) -> str:
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"


def read_srt(path: str | Path) -> dict[str, Diarization]:
    """Turns of SubRip subtitles that say who speaks: ``[speaker]`` or ``speaker: `` ahead of the text.

    Raises:
        DataError: no subtitles, or a cue that names nobody.
    """
    return _collected(path, read_text(path).split("\n"))


def read_vtt(path: str | Path) -> dict[str, Diarization]:
    """Turns of WebVTT subtitles: voices (``<v speaker>``), or as in SubRip; notes, styles and regions are passed over.

    Raises:
        DataError: no WebVTT, or a cue that names nobody.
    """
    lines = read_text(path).split("\n")
    if not re.fullmatch(rf"{HEADER}([ \t].*)?", lines[0]):
        raise Place(path, 1).error(f"is not {HEADER}", "a WebVTT file starts with that word")
    return _collected(path, lines)


def _collected(path: str | Path, lines: list[str]) -> dict[str, Diarization]:
    found = Collected(path)
    for place, block in _blocks(path, lines):
        word = block[0].split()[0]
        if word in ("NOTE", "STYLE", "REGION", HEADER) and "-->" not in block[0]:
            continue
        found.add(stem(path), _cue(place, block))
    return found.diarizations()


def _blocks(path: str | Path, lines: list[str]) -> Iterator[tuple[Place, list[str]]]:
    """Runs of lines that are not empty."""
    block: list[str] = []
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            block.append(line)
        elif block:
            yield Place(path, number - len(block)), block
            block = []


def _cue(place: Place, block: list[str]) -> Turn:
    timing = 0 if "-->" in block[0] else 1  # a number or name may stand ahead
    place = Place(place.path, place.line + timing)
    words = block[timing].split() if len(block) > timing else []
    if len(words) < 3 or words[1] != "-->":
        raise place.error("is no timing of a cue", "it is: 00:00:01.000 --> 00:00:02.500")
    start, end = _seconds(place, words[0]), _seconds(place, words[2])
    return place.turn(start, end, _speaker(place, block[timing + 1 :]))


def _seconds(place: Place, word: str) -> float:
    match = STAMP.fullmatch(word)
    if match is None:
        raise place.error(f"has the time {word[:50]!r}", "times are HH:MM:SS and milliseconds")
    hours, minutes, seconds, milliseconds = (int(part or 0) for part in match.groups())
    return place.seconds(f"{hours * 3600 + minutes * 60 + seconds}.{milliseconds:03d}")


def _speaker(place: Place, text: list[str]) -> str:
    first = text[0].lstrip() if text else ""
    voice = VOICE.match(first)
    if voice:
        return unescape(html.unescape(voice.group(1)))
    match = BRACKETED.match(first) or PREFIXED.match(first)
    if match is None:
        raise place.error("starts a cue that names no speaker", "its text starts with [speaker], speaker: or a voice")
    return unescape(match.group(1))
