"""Turns: what a diarization holds and refuses, and its regions against a count on a fine grid."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from speakerkit.diarization.turns import Diarization, Turn, merge_turns, regions
from speakerkit.errors import DataError


def random_turns(seed: int, count: int = 30) -> list[Turn]:
    """On a grid of 10 ms, so that ends meet."""
    rng = np.random.default_rng(seed)
    starts, lengths = rng.integers(0, 500, count), rng.integers(1, 80, count)
    return [
        Turn(start / 100, (start + length) / 100, f"s{rng.integers(3)}")
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
    ]


def counted(turns: list[Turn] | tuple[Turn, ...]) -> np.ndarray:
    grid = np.zeros(700, dtype=int)
    for turn in turns:
        grid[round(turn.start * 100) : round(turn.end * 100)] += 1
    return grid


def filled(spans: tuple[tuple[float, float], ...]) -> np.ndarray:
    return counted([Turn(start, end, "x") for start, end in spans])


@pytest.mark.parametrize("seed", range(5))
def test_regions_and_merging_against_a_grid(seed: int) -> None:
    turns = random_turns(seed)
    merged = merge_turns(turns)
    for speaker in ("s0", "s1", "s2"):
        own = [turn for turn in merged if turn.speaker == speaker]
        assert np.array_equal(counted(own), counted([t for t in turns if t.speaker == speaker]).clip(max=1))
        assert all(one.end < other.start for one, other in pairwise(own))
    diarization = Diarization("a", tuple(turns))
    grid = counted(merged)
    assert np.array_equal(filled(diarization.speech), grid >= 1)
    assert np.array_equal(filled(diarization.overlap), grid >= 2)
    assert sum(diarization.talk_time().values()) == pytest.approx(grid.sum() / 100)


def test_touching_turns_are_one_and_their_confidence_is_the_mean_over_time() -> None:
    (turn,) = merge_turns([Turn(1.0, 3.0, "a", 0.9), Turn(0.0, 1.0, "a", 0.3), Turn(2.0, 2.0, "a")])
    assert (turn.start, turn.end, turn.confidence) == (0.0, 3.0, pytest.approx(0.7))
    assert len(merge_turns([Turn(0, 1, "a"), Turn(1.2, 2, "a")])) == 2
    assert len(merge_turns([Turn(0, 1, "a"), Turn(1.2, 2, "a")], gap=0.25)) == 1
    assert regions([], 1) == ()


def test_hours_without_a_pause_are_one_turn_whose_cost_is_not_squared() -> None:
    class Counted(float):
        compared = 0

        def __gt__(self, other: float) -> bool:
            Counted.compared += 1
            return float(self) > float(other)

    count = 2000
    (turn,) = merge_turns([Turn(n, Counted(n + 1), "a", 0.5) for n in range(count)])
    assert (turn.start, turn.end, turn.confidence) == (0, count, 0.5)
    assert Counted.compared < 10 * count


@pytest.mark.parametrize("duration", [-1.0, float("nan"), float("inf")])
def test_impossible_durations_are_refused(duration: float) -> None:
    with pytest.raises(DataError, match="meeting: has the duration"):
        Diarization("meeting", duration=duration)


@pytest.mark.parametrize(
    ("turn", "fault"),
    [
        (Turn(-0.1, 1, "a"), "from -0.1 to 1 s"),
        (Turn(0, 11, "a"), "the recording lasts 10 s"),
        (Turn(2, 1, "a"), "from 2 to 1 s"),
        (Turn(0, float("nan"), "a"), "from 0 to nan s"),
        (Turn(0, 1, ""), "without speaker"),
    ],
)
def test_impossible_turns_are_refused(turn: Turn, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        Diarization("meeting", (turn,), duration=10.0)
