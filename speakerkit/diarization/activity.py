"""Turns as activity of each speaker in each frame, and back: what frame-wise models learn, and what they give."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import median_filter

from speakerkit.config import require
from speakerkit.diarization.turns import Span, Turn, merge_turns

Activity = npt.NDArray[np.bool_]
Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Frames:
    """Where frames lie: frame t has its centre at ``first + t * period`` and stands for ``period`` around it.

    Attributes:
        period: seconds from frame to frame.
        first: centre of frame 0 in seconds.
    """

    period: float
    first: float

    def edge(self, frame: int) -> float:
        """Seconds at which a frame begins; that of frame 0 reaches back to the start of the recording."""
        return max(0.0, self.first + (frame - 0.5) * self.period) if frame > 0 else 0.0

    def centres(self, count: int) -> npt.NDArray[np.float64]:
        """(count,) seconds."""
        return self.first + self.period * np.arange(count, dtype=np.float64)


@dataclass(frozen=True)
class Binarisation:
    """How probabilities become turns.

    Attributes:
        threshold: from which on a speaker is taken to speak.
        median: length of the median filter over frames, an odd number; 1 for none.
        min_on: seconds; shorter turns are dropped,
        min_off: seconds; after shorter pauses within a speaker's speech are filled.
    """

    threshold: float = 0.5
    median: int = 11
    min_on: float = 0.0
    min_off: float = 0.0

    def __post_init__(self) -> None:
        require(0 < self.threshold < 1, "threshold", self.threshold, "it is between 0 and 1")
        require(self.median >= 1 and self.median % 2 == 1, "median", self.median, "it is an odd number of frames")
        for name in ("min_on", "min_off"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, value, "it is at least 0 s")


def activity(turns: Iterable[Turn], speakers: Sequence[str], frames: Frames, count: int) -> Activity:
    """(count, speakers) whether each speaks at the centre of each frame; turns of others are passed over."""
    centres = frames.centres(count)
    active = np.zeros((count, len(speakers)), dtype=bool)
    columns = {speaker: column for column, speaker in enumerate(speakers)}
    for turn in turns:
        if turn.speaker in columns:
            first, last = np.searchsorted(centres, [turn.start, turn.end])
            active[first:last, columns[turn.speaker]] = True
    return active


def touched(spans: Iterable[Span], frames: Frames, count: int) -> Activity:
    """(count,) whether a part of what each frame stands for lies in a span; the last frame stands for all after it."""
    edges = [frames.edge(frame) for frame in range(count)]
    found = np.zeros(count, dtype=bool)
    for start, end in spans:
        found[max(0, bisect_right(edges, start) - 1) : bisect_left(edges, end)] = True
    return found


def turns_of(
    probabilities: Probabilities,
    speakers: Sequence[str],
    frames: Frames,
    rule: Binarisation,
    duration: float,
    speech: Sequence[Span] | None = None,
) -> tuple[Turn, ...]:
    """Turns of probabilities (frames, speakers), which may overlap; the confidence is the mean probability.

    Args:
        duration: of the recording in seconds; the last frame reaches to it.
        speech: where somebody speaks, if that is known, sorted and disjoint: nobody does elsewhere, and in it the most
            probable speaker does where no probability reaches the threshold.
    """
    count = len(probabilities)
    if not count or not len(speakers):
        return ()
    smooth = median_filter(probabilities, size=(min(rule.median, 2 * count - 1), 1), mode="nearest")
    active = smooth >= rule.threshold
    if speech is not None:
        spoken = touched(speech, frames, count)
        silent = spoken & ~active.any(axis=1)
        active[silent, smooth[silent].argmax(axis=1)] = True
        active &= spoken[:, None]
    turns: list[Turn] = []
    for column, speaker in enumerate(speakers):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], active[:, column], [0]]).astype(np.int8)))
        found = []
        for first, last in edges.reshape(-1, 2).tolist():
            end = duration if last == count else min(duration, frames.edge(last))
            sure = float(probabilities[first:last, column].mean())
            found.append(Turn(min(frames.edge(first), end), end, speaker, min(1.0, max(0.0, sure))))
        turns += [turn for turn in merge_turns(found, rule.min_off) if turn.seconds >= rule.min_on]
    return tuple(sorted(turns)) if speech is None else _within(turns, speech)


def _within(turns: Iterable[Turn], spans: Sequence[Span]) -> tuple[Turn, ...]:
    """The parts of turns that lie in spans, which are sorted and disjoint."""
    ends = [end for _, end in spans]
    cut = []
    for turn in turns:
        for start, end in spans[bisect_right(ends, turn.start) :]:
            if start >= turn.end:
                break
            cut.append(Turn(max(turn.start, start), min(turn.end, end), turn.speaker, turn.confidence))
    return merge_turns(cut)
