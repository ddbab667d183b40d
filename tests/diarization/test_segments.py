"""Turns of labelled windows against the nearest centre on a fine grid."""

from __future__ import annotations

import numpy as np
import pytest

from speakerkit.diarization.segments import speaker_name, turns_of_windows
from speakerkit.diarization.turns import Turn, regions
from speakerkit.diarization.windows import Windows
from speakerkit.errors import DataError


def test_neighbours_meet_halfway_between_their_centres() -> None:
    windows = Windows(np.array([0.0, 0.75, 1.5]), np.array([1.5, 2.25, 3.0]))
    turns = turns_of_windows([(0.0, 3.0)], windows, [0, 1, 1], confidence=[0.5, 0.8, 1.0])
    assert turns == (Turn(0.0, 1.125, "A"), Turn(1.125, 3.0, "B"))
    assert turns[1].confidence == pytest.approx((0.8 * 0.75 + 1.0 * 1.125) / 1.875)


@pytest.mark.parametrize("seed", range(10))
def test_every_moment_of_speech_has_the_label_of_the_nearest_window(seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = np.sort(rng.choice(3000, 12, replace=False)) / 100
    spans = [(float(start), float(end)) for start, end in times.reshape(-1, 2)]
    starts = np.concatenate([np.arange(start, max(end - 0.5, start + 0.01), 0.5) for start, end in spans])
    windows = Windows(starts, starts + 0.7)  # the last may end outside its span
    labels = rng.integers(3, size=len(starts))
    shuffled = rng.permutation(len(starts))
    turns = turns_of_windows(spans, windows.select(shuffled), labels[shuffled])
    assert np.allclose(regions(turns, 1), spans)
    assert regions(turns, 2) == ()
    centres = windows.centres
    distance = [[max(start - c, c - end, 0.0) for start, end in spans] for c in centres]
    owner = np.argmin(distance, axis=1)
    for number, (start, end) in enumerate(spans):
        own = np.flatnonzero(owner == number)
        for time in np.linspace(start, end, 23)[1:-1]:
            gaps = np.sort(np.abs(centres[own] - time))
            if len(gaps) > 1 and gaps[1] - gaps[0] < 1e-9:
                continue
            expected = labels[own[np.argmin(np.abs(centres[own] - time))]]
            (turn,) = [turn for turn in turns if turn.start < time < turn.end]
            assert turn.speaker == speaker_name(int(expected))


def test_a_span_without_window_takes_the_nearest() -> None:
    windows = Windows(np.array([0.0, 10.0]), np.array([1.5, 11.5]))
    turns = turns_of_windows([(0.0, 1.5), (7.0, 7.2), (10.0, 11.5)], windows, [0, 1], names=["x", "y"])
    assert turns == (Turn(0.0, 1.5, "x"), Turn(7.0, 7.2, "y"), Turn(10.0, 11.5, "y"))


def test_nothing_and_what_does_not_fit() -> None:
    nothing = Windows(np.zeros(0), np.zeros(0))
    assert turns_of_windows([], nothing, []) == ()
    with pytest.raises(DataError, match="for 1 spans of speech"):
        turns_of_windows([(0.0, 1.0)], nothing, [])
    with pytest.raises(DataError, match="for 2 labels"):
        turns_of_windows([(0.0, 1.0)], Windows(np.zeros(1), np.ones(1)), [0, 1])


def test_names_go_on_after_z() -> None:
    assert [speaker_name(number) for number in (0, 25, 26, 27, 701, 702)] == ["A", "Z", "AA", "AB", "ZZ", "AAA"]
