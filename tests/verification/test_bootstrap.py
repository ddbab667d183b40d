"""Bootstrap intervals: they cover the truth where speakers, not trials, are the sample, and follow from the seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from speakerkit.cli.metrics import metrics
from speakerkit.errors import ConfigError, DataError
from speakerkit.verification.bootstrap import bootstrap, trial_speakers
from speakerkit.verification.metrics import evaluate
from speakerkit.verification.trials import Scores, Trials, write_scores


def corpus(speakers: int, recordings: int, seed: int = 0, separator: str = "/", noise: float = 1.0) -> Scores:
    """All pairs of recordings of speakers, of whom some are harder to tell than others."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(speakers), recordings)
    keys = [f"s{speaker:03d}{separator}{number}" for number, speaker in enumerate(who)]
    hard = rng.normal(0, noise, speakers)
    first, second = np.triu_indices(len(who), 1)
    same = who[first] == who[second]
    scores = 3.0 * same + rng.normal(size=len(first)) - hard[who[first]] - hard[who[second]]
    return Scores(Trials.from_pairs([keys[n] for n in first], [keys[n] for n in second], same), scores)


def shuffled(scores: Scores, seed: int = 1) -> Scores:
    order = np.random.default_rng(seed).permutation(len(scores))
    pairs = list(scores.trials.pairs())
    return Scores(
        Trials.from_pairs(
            [pairs[n][0] for n in order], [pairs[n][1] for n in order], np.asarray(scores.trials.labels)[order]
        ),
        scores.scores[order],
    )


def replicated(scores: Scores, drawn: dict[str, int]) -> Scores:
    """The definition: copies of speakers, each target trial in each copy, each nontarget in each pair of copies."""
    rows = []
    labels = np.asarray(scores.trials.labels)
    for row, (enrol, test) in enumerate(scores.trials.pairs()):
        one, other = drawn.get(enrol.partition("/")[0], 0), drawn.get(test.partition("/")[0], 0)
        rows += [row] * (one if labels[row] else one * other)
    return Scores(
        Trials.from_pairs([f"e{n}" for n in range(len(rows))], [f"t{n}" for n in range(len(rows))], labels[rows]),
        scores.scores[rows],
    )


def test_a_replicate_is_the_test_set_of_copied_speakers() -> None:
    scores = corpus(6, 4)
    rng = np.random.default_rng(7)
    names = sorted({key.partition("/")[0] for key in scores.trials.enrol_ids + scores.trials.test_ids})
    found = bootstrap(scores, 5, seed=7, llr=True)
    for number in range(5):
        drawn = np.bincount(rng.integers(6, size=6), minlength=6)
        expected = evaluate(replicated(scores, dict(zip(names, drawn.tolist(), strict=True))), llr=True)
        for figure, values in found.replicates.items():
            assert values[number] == pytest.approx(getattr(expected, figure), abs=1e-12), figure


def test_seed_and_order() -> None:
    scores = corpus(8, 4)
    first, again, reordered, other = (
        bootstrap(scores, 20, seed=3),
        bootstrap(scores, 20, seed=3),
        bootstrap(shuffled(scores), 20, seed=3),
        bootstrap(scores, 20, seed=4),
    )
    for figure, values in first.replicates.items():
        np.testing.assert_array_equal(values, again.replicates[figure])
        np.testing.assert_array_equal(values, reordered.replicates[figure])
    assert not np.array_equal(first.replicates["eer"], other.replicates["eer"])
    assert (first.unit, first.units) == ("speakers", 8)


def test_intervals_cover_the_truth_by_speaker_and_not_by_trial() -> None:
    """EER of 40 sets of other speakers, against that of many: about 95 % of the intervals must hold it."""
    truth = evaluate(corpus(200, 3, seed=99)).eer
    covered = {"speakers": 0, "trials": 0}
    sets = 40
    for seed in range(sets):
        scores = corpus(25, 4, seed)
        anonymous = Trials.from_pairs(
            [f"e{n}" for n in range(len(scores))], [f"t{n}" for n in range(len(scores))], scores.trials.labels
        )
        for result in (bootstrap(scores, 80), bootstrap(Scores(anonymous, scores.scores), 80)):
            interval = result.interval("eer")
            covered[result.unit] += interval.low <= truth <= interval.high
    assert covered["speakers"] >= 0.85 * sets
    assert covered["trials"] < covered["speakers"] - 5


def test_by_trials_the_interval_is_that_of_the_binomial() -> None:
    """Of independent trials at a fixed threshold the miss rate is binomial; constant scores fix the threshold."""
    rng = np.random.default_rng(0)
    labels = np.arange(4000) < 2000
    scores = np.where(rng.random(4000) < 0.1, ~labels, labels).astype(float)  # a tenth of each kind is wrong
    trials = Trials.from_pairs([f"e{n}" for n in range(4000)], [f"t{n}" for n in range(4000)], labels)
    result = bootstrap(Scores(trials, scores), 400)
    interval = result.interval("eer")
    deviation = np.sqrt(0.1 * 0.9 / 4000)  # of the mean of the two rates
    assert (result.unit, result.units) == ("trials", 4000)
    assert (interval.high - interval.low) / (2 * 1.96 * deviation) == pytest.approx(1, abs=0.25)
    reordered = bootstrap(shuffled(Scores(trials, scores)), 400)
    np.testing.assert_array_equal(result.replicates["eer"], reordered.replicates["eer"])


def test_the_difference_of_two_systems_is_narrower_than_either() -> None:
    scores = corpus(20, 5)
    better = Scores(scores.trials, scores.scores + 0.5 * np.asarray(scores.trials.labels))
    first, second = bootstrap(scores, 200), bootstrap(better, 200)
    difference, own = second.difference(first, "eer"), first.interval("eer")
    assert difference.high < 0
    assert difference.high - difference.low < (own.high - own.low) / 2
    with pytest.raises(DataError, match="different trials"):
        first.difference(bootstrap(corpus(20, 4), 200), "eer")


@pytest.mark.parametrize("separator", ["/", "-", "_"])
def test_speakers_are_found_where_labels_agree(separator: str) -> None:
    scores = corpus(4, 2, separator=separator)
    found = trial_speakers(scores.trials)
    assert found is not None
    assert found.count == 4
    assert np.array_equal(found.enrol == found.test, scores.trials.labels)


def test_speakers_by_table_and_by_function() -> None:
    scores = corpus(4, 2, separator="#")
    assert trial_speakers(scores.trials) is None
    assert bootstrap(scores, 2).unit == "trials"
    table = {key: key.partition("#")[0] for key in {*scores.trials.enrol_ids, *scores.trials.test_ids}}
    by_table, by_function = (bootstrap(scores, 5, speaker_of=each) for each in (table, lambda key: key[:4]))
    assert by_table.units == 4
    np.testing.assert_array_equal(by_table.replicates["eer"], by_function.replicates["eer"])
    with pytest.raises(DataError, match="no speaker is known of"):
        bootstrap(scores, 5, speaker_of=dict(list(table.items())[:-1]))
    with pytest.raises(DataError, match="contradict"):
        bootstrap(scores, 5, speaker_of=lambda key: "one")


def test_impossible_requests() -> None:
    scores = corpus(3, 2)
    with pytest.raises(ConfigError):
        bootstrap(scores, 1)
    with pytest.raises(ConfigError):
        bootstrap(scores, 2).interval("eer", 1.0)


def test_two_speakers_still_give_replicates() -> None:
    result = bootstrap(corpus(2, 2), 10)
    assert np.isfinite(result.replicates["min_cllr"]).all()


def test_command(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(metrics)
    scores = corpus(10, 3)
    files = [str(tmp_path / f"{name}.score") for name in ("one", "two")]
    write_scores(files[0], scores)
    write_scores(files[1], Scores(scores.trials, scores.scores + 0.3 * np.asarray(scores.trials.labels)))
    run = CliRunner().invoke(app, [*files, "--bootstrap", "20"], catch_exceptions=False)
    assert "two - one" in run.stdout
    assert "10 speakers" in run.stdout
    report = json.loads(CliRunner().invoke(app, [*files, "--bootstrap", "20", "--json"], catch_exceptions=False).stdout)
    interval = bootstrap(scores, 20).interval("eer")
    assert report["bootstrap"]["scores"]["one"]["eer"] == [interval.low, interval.high]
    assert set(report["bootstrap"]["differences"]) == {"two - one"}
    assert report["bootstrap"]["scores"]["one"]["unit"] == "speakers"
    write_scores(files[0], corpus(10, 3, separator="#"))
    run = CliRunner().invoke(app, [files[0], "--bootstrap", "5"], catch_exceptions=False)
    assert "single trials" in run.output
    assert "trials" in run.stdout.splitlines()[-2]
