"""Held-out utterances: one a speaker, every speaker still trained on, trials that are what they say."""

from __future__ import annotations

import pytest

from speakerkit.data.holdout import Holdout, hold_out
from speakerkit.data.lists import Utterance


def corpus(counts: dict[str, int]) -> list[Utterance]:
    return [
        Utterance(f"{speaker}-{number}", speaker, f"/{speaker}/{number}.wav")
        for speaker, count in counts.items()
        for number in range(count)
    ]


@pytest.fixture
def held() -> Holdout:
    return hold_out(corpus({"a": 5, "b": 3, "c": 2, "d": 4, "e": 1}), speakers=2, seed=0)


def test_one_utterance_of_each_chosen_speaker_and_nothing_lost(held: Holdout) -> None:
    chosen = [utterance.speaker for utterance in held.valid]
    assert len(chosen) == len(set(chosen)) == 2
    assert set(chosen) <= {"a", "b", "d"}  # those with three utterances or more
    everything = corpus({"a": 5, "b": 3, "c": 2, "d": 4, "e": 1})
    assert {*held.train, *held.valid} == set(everything)
    assert len(held.train) + len(held.valid) == len(everything)
    assert {utterance.speaker for utterance in held.train} == set("abcde")
    assert held.train == [utterance for utterance in everything if utterance not in held.valid]  # in their order


def test_trials_pair_held_out_with_trained_on(held: Holdout) -> None:
    speaker = {utterance.key: utterance.speaker for utterance in [*held.train, *held.valid]}
    trained_on = {utterance.key for utterance in held.train}
    valid = {utterance.key for utterance in held.valid}
    assert held.trials
    for enrol, test, target in held.trials:
        assert enrol in valid
        assert test in trained_on
        assert target == (speaker[enrol] == speaker[test])
    assert {target for _, _, target in held.trials} == {True, False}
    assert len(held.trials) == len(set(held.trials))


def test_seeded_and_independent_of_order() -> None:
    utterances = corpus({"a": 5, "b": 6, "c": 7, "d": 4})
    one, other = hold_out(utterances, 3, seed=1), hold_out(utterances[::-1], 3, seed=1)
    assert one.valid == other.valid
    assert sorted(one.trials) == sorted(other.trials)
    assert any(hold_out(utterances, 3, seed=seed).valid != one.valid for seed in range(2, 6))


def test_where_nobody_has_three_utterances_nothing_is_held_out() -> None:
    utterances = corpus({"a": 2, "b": 1})
    assert hold_out(utterances, 2, seed=0) == Holdout(utterances, [], [])
