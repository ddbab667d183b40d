"""Who spoke when, as turns in seconds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from speakerkit.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Span = tuple[float, float]


@dataclass(frozen=True, order=True)
class Turn:
    """One speaker, from ``start`` to ``end`` in seconds.

    Attributes:
        confidence: how sure the label is, in [0, 1]; ``None`` where nothing is known.
    """

    start: float
    end: float
    speaker: str
    confidence: float | None = field(default=None, compare=False)

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.start


@dataclass(frozen=True, eq=False)
class Speaker:
    """What is known of a speaker of one recording.

    Attributes:
        label: as in the turns.
        embedding: (D,) mean of the windows' directions, where there is one.
        cosine: with the enrolled voice whose name the label is; ``None`` for the anonymous.
    """

    label: str
    embedding: npt.NDArray[np.float32] | None = None
    cosine: float | None = None


@dataclass(frozen=True, eq=False)
class Diarization:
    """Turns of one recording (or of one channel of it).

    Turns of different speakers may overlap. Those of one speaker never do: they are merged where they touch, and the
    confidence of what is merged is the mean over time.

    Attributes:
        recording: its id.
        turns: sorted by start, end and speaker; every one has a positive length.
        duration: of the recording in seconds, which no turn goes beyond; ``None`` where it is not known.
        channel: from 1 on, as in RTTM.
        speakers: by label; those of the turns at least.
        settings: what it was made with.

    Raises:
        DataError: a turn that is not finite, starts below 0 or ends after ``duration``, or has no speaker; a duration
            that is not finite or below 0.
    """

    recording: str
    turns: tuple[Turn, ...] = ()
    duration: float | None = None
    channel: int = 1
    speakers: Mapping[str, Speaker] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        limit = math.inf if self.duration is None else self.duration
        if self.duration is not None and not 0 <= self.duration < math.inf:
            raise DataError(self.recording, f"has the duration {self.duration}", "it is in seconds, not negative")
        for turn in self.turns:
            if not 0 <= turn.start <= turn.end <= limit or not math.isfinite(turn.end):
                fault = f"has a turn from {turn.start} to {turn.end} s, the recording lasts {limit:g} s"
                raise DataError(self.recording, fault, "turns lie inside it and have an end after the start")
            if not turn.speaker:
                raise DataError(self.recording, f"has a turn without speaker at {turn.start} s", "name it")
        object.__setattr__(self, "turns", merge_turns(self.turns))
        labels = dict.fromkeys(turn.speaker for turn in self.turns)
        object.__setattr__(self, "speakers", {**{label: Speaker(label) for label in labels}, **self.speakers})

    @property
    def labels(self) -> tuple[str, ...]:
        """Speakers of the turns, in order of appearance."""
        return tuple(dict.fromkeys(turn.speaker for turn in self.turns))

    @property
    def speech(self) -> tuple[Span, ...]:
        """Where at least one speaks."""
        return regions(self.turns, at_least=1)

    @property
    def overlap(self) -> tuple[Span, ...]:
        """Where at least two speak."""
        return regions(self.turns, at_least=2)

    def talk_time(self) -> dict[str, float]:
        """Seconds of each speaker, in order of appearance."""
        seconds = dict.fromkeys(self.labels, 0.0)
        for turn in self.turns:
            seconds[turn.speaker] += turn.seconds
        return seconds

    def to_rttm(self, path: str | Path | None = None) -> str:
        """RTTM text, written to ``path`` too (atomically) where one is given; so the others. See ``formats``."""
        return self._written("rttm", path)

    def to_json(self, path: str | Path | None = None) -> str:
        """JSON: turns, speakers (without their embeddings) and settings."""
        return self._written("json", path)

    def to_csv(self, path: str | Path | None = None) -> str:
        """CSV with a header."""
        return self._written("csv", path)

    def to_textgrid(self, path: str | Path | None = None) -> str:
        """Praat's TextGrid, a tier a speaker."""
        return self._written("textgrid", path)

    def to_audacity(self, path: str | Path | None = None) -> str:
        """A label track for Audacity."""
        return self._written("audacity", path)

    def to_lab(self, path: str | Path | None = None) -> str:
        """``start end speaker`` a line."""
        return self._written("lab", path)

    def to_srt(self, path: str | Path | None = None) -> str:
        """SubRip subtitles that say who speaks."""
        return self._written("srt", path)

    def to_vtt(self, path: str | Path | None = None) -> str:
        """WebVTT subtitles that say who speaks."""
        return self._written("vtt", path)

    def plot(self, path: str | Path | None = None) -> Figure:
        """A timeline, a row a speaker; written as ``.png`` or ``.svg`` where a path is given. See ``plots``."""
        from speakerkit.diarization.plots import plot_turns

        return plot_turns(self, path)

    def _written(self, name: str, path: str | Path | None) -> str:
        from speakerkit.diarization import formats

        text = formats.to_text([self], name)
        if path is not None:
            formats.write_text(path, text)
        return text


def merge_turns(turns: Iterable[Turn], gap: float = 0.0) -> tuple[Turn, ...]:
    """Turns sorted, those of one speaker merged where at most ``gap`` seconds lie between, empty ones dropped."""
    by_speaker: dict[str, list[list[Turn]]] = {}
    reached: dict[str, float] = {}
    for turn in sorted(turns):
        if turn.end <= turn.start:
            continue
        groups = by_speaker.setdefault(turn.speaker, [])
        if groups and turn.start <= reached[turn.speaker] + gap:
            groups[-1].append(turn)
        else:
            groups.append([turn])
        reached[turn.speaker] = max(turn.end, reached.get(turn.speaker, 0.0))
    return tuple(sorted(_merged(group) for groups in by_speaker.values() for group in groups))


def _merged(turns: list[Turn]) -> Turn:
    if len(turns) == 1:
        return turns[0]
    known = [turn for turn in turns if turn.confidence is not None]
    seconds = sum(turn.seconds for turn in known)
    confidence = sum((turn.confidence or 0.0) * turn.seconds for turn in known) / seconds if known else None
    return Turn(turns[0].start, max(turn.end for turn in turns), turns[0].speaker, confidence)


def regions(turns: Iterable[Turn], at_least: int) -> tuple[Span, ...]:
    """Spans, as long as they can be, in which ``at_least`` turns are open at once."""
    listed = list(turns)
    if not listed:
        return ()
    times, place = np.unique([time for turn in listed for time in (turn.start, turn.end)], return_inverse=True)
    changes = np.zeros(len(times), dtype=np.intp)
    np.add.at(changes, place, np.tile([1, -1], len(listed)))
    inside = np.concatenate([[False], np.cumsum(changes) >= at_least])  # ahead of each time, and after the last
    edges = np.diff(inside.astype(np.int8))
    return tuple(zip(times[edges > 0].tolist(), times[edges < 0].tolist(), strict=True))


def without(spans: Iterable[Span], holes: Sequence[Span]) -> tuple[Span, ...]:
    """Sorted, disjoint spans where they are not in holes, which are sorted and disjoint too."""
    left: list[Span] = []
    first = 0
    for start, end in spans:
        while first < len(holes) and holes[first][1] <= start:
            first += 1
        number = first
        while number < len(holes) and holes[number][0] < end:
            if holes[number][0] > start:
                left.append((start, holes[number][0]))
            start = holes[number][1]
            number += 1
        if start < end:
            left.append((start, end))
    return tuple(left)
