"""Error rates of diarization against closed forms, spy-der, a count on a grid of milliseconds, and scipy's median."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import medfilt

from speakerkit.diarization.der import (
    Convention,
    ErrorTimes,
    median_filtered,
    score_diarization,
    score_recording,
)
from speakerkit.diarization.formats import read_turns
from speakerkit.diarization.turns import Diarization, Turn
from speakerkit.errors import ConfigError, DataError

Turns = list[tuple[str, float, float]]


def made(*turns: tuple[str, float, float], recording: str = "a") -> Diarization:
    return Diarization(recording, tuple(Turn(start, end, speaker) for speaker, start, end in turns))


def listed(diarization: Diarization) -> Turns:
    return [(turn.speaker, turn.start, turn.end) for turn in diarization.turns]


def drawn(seed: int, speakers: int, count: int, length: float = 60.0) -> Diarization:
    """On a grid of 10 ms, so that events coincide."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, int(100 * length) - 400, count)
    ends = starts + rng.integers(5, 400, count)
    who = rng.integers(speakers, size=count)
    return made(*((f"s{s}", a / 100, b / 100) for s, a, b in zip(who, starts.tolist(), ends.tolist(), strict=True)))


def perturbed(reference: Diarization, seed: int) -> Diarization:
    """Edges moved, labels confused, turns lost and added."""
    rng = np.random.default_rng(seed)
    turns = []
    for turn in reference.turns:
        start, end = sorted(np.array([turn.start, turn.end]) + rng.normal(0, 0.2, 2))
        label = rng.choice(reference.labels) if rng.random() < 0.15 else turn.speaker
        if rng.random() > 0.1 and end > max(start, 0):
            turns.append((f"h-{label}", max(float(start), 0.0), float(end)))
    return made(*turns, ("h-new", 1.0, 2.5), recording=reference.recording)


def grid(diarization: Diarization, length: float) -> dict[str, np.ndarray]:
    rows = {label: np.zeros(round(1000 * length), dtype=bool) for label in diarization.labels}
    for turn in diarization.turns:
        rows[turn.speaker][round(1000 * turn.start) : round(1000 * turn.end)] = True
    return rows


def test_closed_form() -> None:
    """Reference: a 1-5, b 4-8. Hypothesis: x 1-4.5 (a), y 4.5-7 and 8-9 (b), x again 7-8."""
    reference = made(("a", 1, 5), ("b", 4, 8))
    hypothesis = made(("x", 1, 4.5), ("y", 4.5, 7), ("x", 7, 8), ("y", 8, 9))
    score = score_recording(reference, hypothesis)
    assert score.mapping == {"x": "a", "y": "b"}
    # 4-4.5: b missed; 4.5-5: a missed; 7-8: b taken for a; 8-9: y though nobody speaks
    assert score.errors == ErrorTimes(speech=8.0, missed=1.0, false_alarm=1.0, confusion=1.0)
    assert score.errors.der == 3 / 8
    assert score.overlap == ErrorTimes(speech=2.0, missed=1.0)
    assert score.single == ErrorTimes(speech=6.0, false_alarm=1.0, confusion=1.0)
    # a: 3.5 of the 5 s that either speaks; b: 2.5 of 5 s
    assert score.jaccard == {"a": pytest.approx(1 - 3.5 / 5), "b": pytest.approx(1 - 2.5 / 5)}
    assert score.jer == pytest.approx(0.4)
    # The collar takes 0.75-1.25, 3.75-4.25, 4.75-5.25 and 7.75-8.25.
    collared = score_recording(reference, hypothesis, convention=Convention(collar=0.25))
    assert collared.errors == ErrorTimes(speech=6.0, missed=0.5, false_alarm=0.75, confusion=0.75)
    assert collared.jaccard == score.jaccard
    single = score_recording(reference, hypothesis, convention=Convention(collar=0.25, overlap=False))
    assert single.errors == ErrorTimes(speech=5.0, false_alarm=0.75, confusion=0.75)
    inside = score_recording(reference, hypothesis, [(4.5, 6), (5.5, 7.5)])
    assert inside.errors == ErrorTimes(speech=3.5, missed=0.5, confusion=0.5)
    ended = score_recording(reference, hypothesis, convention=Convention(extent="reference"))
    assert ended.errors == replace(score.errors, false_alarm=0.0)


def test_turns_of_one_speaker_that_overlap_or_touch_count_once() -> None:
    parts = made(("a", 1, 3.5), ("a", 3, 5), ("a", 5, 6))
    convention = Convention(collar=0.25)
    assert score_recording(parts, parts, convention=convention).errors == ErrorTimes(speech=4.5)
    assert score_recording(parts, made(), convention=convention).errors == ErrorTimes(speech=4.5, missed=4.5)


@pytest.mark.parametrize("regions", [None, [(3.0, 20.005), (31.0, 55.0)]])
@pytest.mark.parametrize("collar", [0.0, 0.1, 0.25])
@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_spy_der(seed: int, collar: float, regions: list[tuple[float, float]] | None) -> None:
    spyder = pytest.importorskip("spyder", reason="spy-der is not installed")
    reference, hypothesis = drawn(seed, 2 + seed % 4, 30), drawn(seed + 100, 5 - seed % 4, 30)
    if seed % 2:
        hypothesis = perturbed(reference, seed)
    score = score_recording(reference, hypothesis, regions, Convention(collar=collar))
    single = score_recording(reference, hypothesis, regions, Convention(collar=collar, overlap=False))
    for ours, kind in (
        (score.errors, "all"),
        (score.overlap, "overlap"),
        (score.single, "nonoverlap"),
        (single.errors, "nonoverlap"),
    ):
        theirs = spyder.DER(
            listed(reference), listed(hypothesis), uem=regions or [(0, 70)], regions=kind, collar=collar
        )
        expected = [theirs.duration, *(theirs.duration * rate for rate in (theirs.miss, theirs.falarm, theirs.conf))]
        assert [ours.speech, ours.missed, ours.false_alarm, ours.confusion] == pytest.approx(expected, abs=1e-6)
        assert ours.der == pytest.approx(theirs.der, abs=1e-6)


@pytest.mark.parametrize("corpus", ["ami-mini", "voxconverse-rttm"])
@pytest.mark.parametrize("collar", [0.0, 0.25])
def test_agrees_with_spy_der_on_real_references(corpus: str, collar: float, real_data: Path) -> None:
    spyder = pytest.importorskip("spyder", reason="spy-der is not installed")
    if not (real_data / corpus).is_dir():
        pytest.skip(f"no {corpus} in SPEAKERKIT_DATA")
    references = read_turns(real_data / corpus)
    hypotheses = {key: perturbed(each, number) for number, (key, each) in enumerate(references.items())}
    ours = score_diarization(references, hypotheses, convention=Convention(collar=collar))
    theirs = spyder.DER(
        {key: listed(each) for key, each in references.items()},
        {key: listed(each) for key, each in hypotheses.items()},
        per_file=True,
        collar=collar,
    )
    assert 0.1 < ours.errors.der < 0.6
    for each in ours.recordings:
        assert each.errors.der == pytest.approx(theirs[each.recording].der, abs=1e-6)
    assert ours.errors.der == pytest.approx(theirs["Overall"].der, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_jaccard_and_spans_against_a_grid(seed: int) -> None:
    reference, hypothesis = drawn(seed, 3, 15), drawn(seed + 50, 3, 15)
    truth, heard = grid(reference, 60), grid(hypothesis, 60)
    best = min(
        sum(
            1 - (truth[one] & heard[other]).sum() / (truth[one] | heard[other]).sum()
            for one, other in zip(truth, order, strict=True)
        )
        for order in permutations(heard)
    )
    score = score_recording(reference, hypothesis, convention=Convention(collar=0.1), explain=True)
    assert score.jer == pytest.approx(best / 3)
    for kind, seconds in (
        ("missed", score.errors.missed),
        ("false alarm", score.errors.false_alarm),
        ("confusion", score.errors.confusion),
    ):
        assert seconds > 0
        assert sum(span.seconds for span in score.spans if span.kind == kind) == pytest.approx(seconds)
    for span in score.spans:
        middle = round(500 * (span.start + span.end))
        found = {score.mapping.get(label) for label in heard if heard[label][middle]}
        assert set(span.reference) == {label for label in truth if truth[label][middle]} - found
        wrong = {label for label in heard if heard[label][middle]}
        assert set(span.hypothesis) == {
            label for label in wrong if score.mapping.get(label) not in truth or not truth[score.mapping[label]][middle]
        }


@pytest.mark.parametrize("frames", [3, 11])
def test_median_against_scipy(frames: int) -> None:
    rng = np.random.default_rng(0)
    active = np.repeat(rng.random(400) < 0.5, rng.integers(1, 9, 400))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(int)))
    turns = [("a", a / 100, b / 100) for a, b in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)]
    found = median_filtered(made(*turns, ("b", 0.004, 0.1)), frames)
    expected = medfilt(active.astype(float), frames) > 0.5
    result = np.zeros(len(active), dtype=bool)
    for turn in found.turns:
        if turn.speaker == "a":
            result[round(100 * turn.start) : round(100 * turn.end)] = True
    assert np.array_equal(result, expected)
    assert expected.any()
    # Where the whole is short, most of the window lies outside: 10 frames hold 6 of 11.
    assert [turn for turn in found.turns if turn.speaker == "b"] == [Turn(0.0, 0.1, "b")]


def test_median_is_of_the_hypothesis_alone() -> None:
    reference = made(("a", 0, 1), ("a", 1.03, 2), ("a", 3, 3.04))
    score = score_recording(reference, reference, convention=Convention(median=11))
    assert score.errors == ErrorTimes(pytest.approx(2.01), pytest.approx(0.04), pytest.approx(0.03), 0.0)
    assert median_filtered(Diarization("a", (Turn(0, 1.2345, "a"),), 1.2345), 11).turns == (Turn(0, 1.23, "a"),)


def test_nobody_speaks() -> None:
    silence, speech = made(), made(("a", 1, 2))
    quiet = score_recording(silence, silence)
    assert (quiet.errors, quiet.errors.der, quiet.jer) == (ErrorTimes(), None, 0.0)
    alarm = score_recording(silence, speech, convention=Convention(collar=0.25))
    assert (alarm.errors, alarm.errors.der, alarm.jer) == (ErrorTimes(false_alarm=1.0), None, 1.0)
    missed = score_recording(speech, silence)
    assert (missed.errors.der, missed.jer, missed.speakers) == (1.0, 1.0, 1)
    assert score_recording(silence, speech, convention=Convention(extent="reference")).errors == ErrorTimes()
    assert score_recording(speech, speech, [(5, 6)]).errors == ErrorTimes()


def test_pooling_weighs_by_speech_and_groups_by_speakers() -> None:
    references = {"a": made(("x", 0, 10)), "b": made(("x", 0, 1), ("y", 1, 2)), "c": made(("x", 0, 2), ("y", 2, 3))}
    hypotheses = {"a": made(("x", 0, 9)), "b": made(("x", 0, 2)), "c": made(("p", 0, 2), ("q", 2, 3)), "d": made()}
    score = score_diarization(references, hypotheses, explain=True)
    assert score.errors == ErrorTimes(15.0, missed=1.0, confusion=1.0)
    assert score.errors.der == pytest.approx(2 / 15)
    assert score.jer == pytest.approx((0.1 + 0.5 + 1 + 0 + 0) / 5)
    assert {count: [each.recording for each in group] for count, group in score.by_speakers().items()} == {
        1: ["a"],
        2: ["b", "c"],
    }
    assert score.extra == ("d",)
    (first, second) = score.worst(5)
    assert (first.recording, first.kind, first.start, first.end) == ("a", "missed", 9.0, 10.0)
    assert (second.recording, second.kind, second.reference, second.hypothesis) == ("b", "confusion", ("y",), ("x",))
    exported = score.to_dict()
    assert exported["by_speakers"]["2"]["errors"]["der"] == pytest.approx(0.2)
    assert exported["errors"]["der"] == score.errors.der
    assert "all (3)                   15.00  13.33      6.67           0.00         6.67  32.00" in score.table()


def test_what_lacks_is_said() -> None:
    references = {"a": made(("x", 0, 10)), "b": made(("x", 0, 2))}
    with pytest.raises(DataError, match="lacks 1 recordings of the reference: b"):
        score_diarization(references, {"a": references["a"]})
    score = score_diarization(references, {"a": references["a"]}, missing_as_silence=True)
    assert score.missing == ("b",)
    assert score.errors == ErrorTimes(12.0, missed=2.0)
    score = score_diarization(references, references, {"a": [(0, 5)]})
    assert score.outside == ("b",)
    assert score.errors == ErrorTimes(5.0)
    with pytest.raises(DataError, match="no recording to score"):
        score_diarization(references, references, {"c": [(0, 5)]})


def test_channels_of_a_recording_are_those_of_the_other_side(tmp_path: Path) -> None:
    """RTTM does not say of the second channel that nobody speaks there; a UEM is of all channels."""
    both, first, second = tmp_path / "both.rttm", tmp_path / "first.rttm", tmp_path / "second.rttm"
    lines = [f"SPEAKER a {channel} {channel} 4 <NA> <NA> s <NA> <NA>\n" for channel in (1, 2)]
    for path, text in ((both, "".join(lines)), (first, lines[0]), (second, lines[1])):
        path.write_text(text)
    for one, heard in ((first, "a:1"), (second, "a:2")):
        score = score_diarization(read_turns(both), read_turns(one), missing_as_silence=True)
        assert score.missing == tuple({"a:1", "a:2"} - {heard})
        assert score.errors == ErrorTimes(8.0, missed=4.0)
        assert score.extra == ()
    score = score_diarization(read_turns(first), read_turns(both))
    assert (score.errors, score.extra) == (ErrorTimes(4.0), ("a:2",))
    score = score_diarization(read_turns(both), read_turns(both), {"a": [(0.0, 3.0)]})
    assert (score.errors, score.outside) == (ErrorTimes(3.0), ())


@pytest.mark.parametrize(
    "bad", [{"collar": -1}, {"collar": float("nan")}, {"median": 4}, {"median": 1003}, {"extent": "x"}]
)
def test_conventions_without_sense(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Convention(**bad)
