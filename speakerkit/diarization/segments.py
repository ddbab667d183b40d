"""From labelled windows to turns: whose speech it is between the windows' centres; and turns of one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from speakerkit.diarization.turns import Span, Turn, merge_turns
from speakerkit.diarization.windows import Windows
from speakerkit.errors import DataError


def speaker_name(number: int) -> str:
    """A, B, ... Z, AA, AB, ... for 0, 1, ..."""
    name = ""
    while number >= 0:
        name = chr(ord("A") + number % 26) + name
        number = number // 26 - 1
    return name


def turns_of_windows(
    spans: Sequence[Span],
    windows: Windows,
    labels: npt.ArrayLike,
    *,
    confidence: npt.ArrayLike | None = None,
    names: Sequence[str] | None = None,
) -> tuple[Turn, ...]:
    """Turns that fill the spans, each moment with the label of the window whose centre is nearest in the same span.

    A window belongs to the span that its centre lies in, or is nearest to. A span without window has the label of the
    window whose centre is nearest to its own.

    Args:
        spans: speech (start, end) in seconds, sorted and disjoint.
        windows: N of them, in any order.
        labels: (N,) 0 to K - 1.
        confidence: (N,) of the labels.
        names: of the labels, K of them; A, B, ... where not given.

    Raises:
        DataError: labels or confidences of another number than the windows, or spans without a window anywhere.
    """
    label = np.asarray(labels, dtype=np.intp)
    sure = [None] * len(label) if confidence is None else np.asarray(confidence, dtype=np.float64).tolist()
    if not len(windows) == len(label) == len(sure):
        fault = f"are {len(windows)}, for {len(label)} labels and {len(sure)} confidences"
        raise DataError("windows", fault, "give one of each a window")
    if not len(spans):
        return ()
    if not len(windows):
        raise DataError("windows", f"are none, for {len(spans)} spans of speech", "cut windows out of the spans")
    if names is None:
        names = [speaker_name(number) for number in range(label.max() + 1)]
    centres = windows.centres
    order = np.argsort(centres, kind="stable")
    owner = _nearest_span(np.asarray(spans, dtype=np.float64), centres[order])
    turns = []
    for number, (start, stop) in enumerate(spans):
        inside = order[slice(*np.searchsorted(owner, [number, number + 1]))]
        if not len(inside):
            inside = np.array([np.argmin(np.abs(centres - (start + stop) / 2))])
        cuts = np.clip((centres[inside][1:] + centres[inside][:-1]) / 2, start, stop).tolist()
        for window, (left, right) in zip(inside.tolist(), pairwise([start, *cuts, stop]), strict=True):
            turns.append(Turn(left, right, names[label[window]], sure[window]))
    return merge_turns(turns)


def _nearest_span(spans: npt.NDArray[np.float64], times: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """(N,) span in which each time (N,) lies or which is nearest, the earlier one of two; rises with the times."""
    after = np.clip(np.searchsorted(spans[:, 0], times, side="right"), 1, len(spans))
    before = after - 1
    following = np.minimum(after, len(spans) - 1)
    nearer = spans[following, 0] - times < times - spans[before, 1]
    return np.where(nearer, following, before)


@dataclass(frozen=True)
class _Piece:
    """A stretch in which the same turns are open, and the one of them that has it."""

    start: float
    end: float
    turns: tuple[Turn, ...]
    owner: Turn


def exclusive_turns(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """Turns of which no two overlap, in the same speech: where several are open, the surest one goes on.

    Of equally sure ones it is that which began first. Nobody vanishes: who would, has half of the longest stretch in
    which they speak.
    """
    pieces = list(_pieces(sorted(turn for turn in turns if turn.seconds > 0)))
    speakers = dict.fromkeys(turn.speaker for piece in pieces for turn in piece.turns)
    for speaker in speakers:
        if any(piece.owner.speaker == speaker for piece in pieces):
            continue
        theirs = [(piece.end - piece.start, -n) for n, piece in enumerate(pieces) if speaker in _speakers(piece)]
        number = -max(theirs)[1]
        whole = pieces[number]
        middle = (whole.start + whole.end) / 2
        own = next(turn for turn in whole.turns if turn.speaker == speaker)
        pieces[number : number + 1] = [replace(whole, end=middle), replace(whole, start=middle, owner=own)]
    return merge_turns(replace(piece.owner, start=piece.start, end=piece.end) for piece in pieces)


def _speakers(piece: _Piece) -> set[str]:
    return {turn.speaker for turn in piece.turns}


def _pieces(turns: Sequence[Turn]) -> Iterator[_Piece]:
    """Stretches between all starts and ends of sorted turns, where there is one."""
    edges = sorted({time for turn in turns for time in (turn.start, turn.end)})
    waiting = list(reversed(turns))
    opened: list[Turn] = []
    for start, end in pairwise(edges):
        opened = [turn for turn in opened if turn.end > start]
        while waiting and waiting[-1].start <= start:
            opened.append(waiting.pop())
        if opened:
            yield _Piece(start, end, tuple(opened), max(opened, key=_preference))


def _preference(turn: Turn) -> tuple[float, float]:
    return turn.confidence or 0.0, -turn.start
