"""Turns to frames and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speakerkit.diarization.activity import Binarisation, Frames, activity, touched, turns_of
from speakerkit.diarization.turns import Turn, regions
from speakerkit.errors import ConfigError

FRAMES = Frames(period=0.1, first=0.05)
PLAIN = Binarisation(median=1)


def test_frames_whose_centre_is_in_a_turn_are_active() -> None:
    turns = (Turn(0.0, 0.3, "a"), Turn(0.16, 0.4, "b"), Turn(0.0, 1.0, "c"))
    found = activity(turns, ["b", "a"], FRAMES, 5)
    assert found.astype(int).tolist() == [[0, 1], [0, 1], [1, 1], [1, 0], [0, 0]]


def test_frames_that_reach_into_a_span_are_touched() -> None:
    assert touched([(0.1, 0.2), (0.35, 9.0)], FRAMES, 6).tolist() == [False, True, False, True, True, True]
    late = Frames(period=0.1, first=0.2)  # the first frame is heard from the beginning on
    assert touched([(0.0, 0.01), (0.25, 0.26)], late, 3).tolist() == [True, True, False]
    assert touched([], FRAMES, 2).tolist() == [False, False]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_there_and_back_again(rows: list[tuple[bool, bool]]) -> None:
    active = np.array(rows)
    seconds = len(active) * 0.1
    turns = turns_of(active.astype(np.float32), ["a", "b"], FRAMES, PLAIN, seconds)
    assert np.array_equal(activity(turns, ["a", "b"], FRAMES, len(active)), active)
    assert sum(turn.seconds for turn in turns) == pytest.approx(0.1 * active.sum())
    assert all(turn.confidence == 1 and 0 <= turn.start < turn.end <= seconds for turn in turns)


def test_median_is_that_of_a_definition() -> None:
    values = np.random.default_rng(0).random((50, 1)).astype(np.float32)
    padded = np.pad(values[:, 0], 5, mode="edge")
    smooth = np.array([np.sort(padded[place : place + 11])[5] for place in range(50)])
    turns = turns_of(values, ["a"], FRAMES, Binarisation(threshold=0.45), 5.0)
    assert np.array_equal(activity(turns, ["a"], FRAMES, 50)[:, 0], smooth >= np.float32(0.45))


def test_short_pauses_are_filled_and_short_turns_dropped() -> None:
    values = np.array([[1, 1, 0, 1, 1, 0, 0, 0, 1, 0]], dtype=np.float32).T
    rule = Binarisation(median=1, min_on=0.2, min_off=0.15)
    assert turns_of(values, ["a"], FRAMES, rule, 1.0) == (Turn(0.0, 0.5, "a"),)


def test_known_speech_is_all_taken_and_nothing_beside_it() -> None:
    values = np.array([[0.9, 0.1], [0.4, 0.3], [0.2, 0.3], [0.9, 0.9]], dtype=np.float32)
    turns = turns_of(values, ["a", "b"], FRAMES, PLAIN, 0.4, speech=[(0.02, 0.3)])
    assert turns == (Turn(0.02, 0.2, "a"), Turn(0.2, 0.3, "b"))


@given(
    st.lists(st.integers(0, 130), max_size=10, unique=True),
    st.sampled_from([0.02, 0.08, 0.1, 0.13]),
    st.floats(0, 0.2),
    st.integers(0, 999),
)
def test_all_known_speech_is_somebodys(times: list[int], period: float, first: float, seed: int) -> None:
    edges = [time / 100 for time in sorted(times)]
    spans = list(zip(edges[::2], edges[1::2], strict=False))
    frames, count = Frames(period, first), max(1, round(1.3 / period))
    values = np.random.default_rng(seed).random((count, 2)).astype(np.float32)
    turns = turns_of(values, ["a", "b"], frames, Binarisation(threshold=0.8, median=3), 1.3, speech=spans)
    assert regions(turns, at_least=1) == tuple(spans)


def test_the_last_frame_reaches_to_the_end() -> None:
    values = np.ones((3, 1), dtype=np.float32)
    assert turns_of(values, ["a"], FRAMES, PLAIN, 0.37) == (Turn(0.0, 0.37, "a"),)
    assert turns_of(values, ["a"], FRAMES, PLAIN, 0.25) == (Turn(0.0, 0.25, "a"),)


def test_nobody_and_nothing() -> None:
    assert turns_of(np.zeros((0, 2), dtype=np.float32), ["a", "b"], FRAMES, PLAIN, 0.0) == ()
    assert turns_of(np.zeros((5, 0), dtype=np.float32), [], FRAMES, PLAIN, 0.5) == ()


@pytest.mark.parametrize("values", [{"threshold": 0.0}, {"median": 4}, {"median": 0}, {"min_on": -1.0}])
def test_impossible_rules(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Binarisation(**values)  # type: ignore[arg-type]
