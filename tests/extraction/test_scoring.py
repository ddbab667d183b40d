"""Scoring of estimates: each figure as it is defined, nothing dropped, contradictions found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speakerkit.data.ark import Embeddings
from speakerkit.errors import ConfigError, DataError
from speakerkit.extraction import metrics
from speakerkit.extraction.scores import ExtractionScore, ItemScore, Measured, Share, read_scores
from speakerkit.extraction.scoring import read_estimates, read_items, score_extraction
from speakerkit.intervals import mean_interval
from tests.extraction.mixture_set import RATE, MixtureSet, write_estimates, write_mixture_set

KEYS = ["m0-ann", "m0-bob", "m1-ann", "m1-bob", "m1-cy", "m2-cy"]


@pytest.fixture
def made(tmp_path: Path) -> MixtureSet:
    mixtures = write_mixture_set(tmp_path / "set")
    write_estimates(mixtures)
    return mixtures


def score(made: MixtureSet, *wanted: str, **options: object) -> ExtractionScore:
    return score_extraction(read_items(made.folder), read_estimates(made.estimates), wanted, **options)


def test_each_figure_is_what_it_says(made: MixtureSet) -> None:
    found = score(made, "sdr")
    assert [item.key for item in found.items] == KEYS
    ann = found.items[0]
    mixture, target, other = (made.samples[name] for name in ("m0", "m0-ann", "m0-bob"))
    estimate = (target + 0.1 * other).astype(np.float32)
    assert ann.measured["si_sdr"].estimate == pytest.approx(metrics.si_sdr(estimate, target), abs=1e-5)
    assert ann.measured["sdr"].mixture == pytest.approx(metrics.sdr(mixture, target), abs=1e-5)
    # ann speaks in [0, 1.5) s, bob in [0.5, 1.75), and from 1.75 to 2 nobody does.
    both, others, none = slice(4000, 12000), slice(12000, 14000), slice(14000, 16000)
    ss = metrics.si_sdr(estimate[both], target[both]) - metrics.si_sdr(mixture[both], target[both])
    assert ann.measured["si_sdr_ss"].improvement == pytest.approx(ss, abs=1e-5)
    power = 10 * np.log10(np.sum(estimate[others].astype(float) ** 2) / 0.25 + 1e-8)
    assert ann.measured["power_qs"].estimate == pytest.approx(power, abs=1e-5)
    assert ann.measured["power_qq"].estimate == pytest.approx(-80.0)
    assert not estimate[none].any()
    assert ann.measured["power_quiet"].estimate == pytest.approx(power - 10 * np.log10(2), abs=1e-4)
    gain = np.dot(estimate, mixture) / np.dot(estimate, estimate)
    levelled = ann.measured["levelled_qs"].estimate - power
    assert levelled == pytest.approx(20 * np.log10(gain), abs=1e-4)
    # In [0, 0.5) ann is alone, so the mixture is the voice already: nothing can improve.
    assert ann.measured["si_sdr_sq"].improvement is None
    assert ann.overlap == pytest.approx(1.0 / 1.75)
    assert (ann.genders, ann.speakers, ann.present, ann.swapped) == ("F+M", 2, True, False)


def test_failures_are_counted_and_say_why(made: MixtureSet) -> None:
    found = score(made)
    by_key = {item.key: item for item in found.items}
    assert by_key["m1-ann"].failures["si_sdr"] == "estimate: is silent"
    assert by_key["m1-ann"].error == ""
    assert [item.key for item in found.errors] == ["m1-bob"]
    assert by_key["m1-bob"].error == by_key["m1-bob"].failures["si_sdr"] == "there is no estimate"
    summary = found.summary("si_sdr")
    assert (summary.estimate.count, summary.failed) == (3, 2)
    # Of five voices that are there, two are not measured and one is swapped.
    assert found.shares()["not_improved"] == Share(3, 5)
    assert found.shares()["swapped"] == Share(1, 2)
    assert [item.key for item in found.worst(4)] == ["m1-ann", "m1-bob", "m0-bob", "m0-ann"]


def test_absent_target(made: MixtureSet) -> None:
    (item,) = [item for item in score(made).items if not item.present]
    assert item.key == "m1-cy"
    assert item.measured["leakage"].estimate == pytest.approx(-40.0, abs=1e-4)
    assert item.swapped is None
    silent = [(f"{name} {path}") for name, path in [("m1-cy", made.folder / "zeros.wav")]]
    soundfile.write(made.folder / "zeros.wav", np.zeros(len(made.samples["m1"])), RATE)
    with open(made.folder / "ref.scp", "a") as stream:
        stream.write("\n".join(silent) + "\n")
    (again,) = [item for item in score(made).items if item.key == "m1-cy"]
    assert (again.present, again.measured) == (False, item.measured)


def test_groups(made: MixtureSet) -> None:
    groups = {name: [item.key for item in items] for name, items in score(made).groups().items()}
    assert groups == {
        "overlap 40 to 60 %": ["m0-ann", "m0-bob"],
        "overlap 80 to 100 %": ["m1-ann", "m1-bob"],
        "genders F": ["m2-cy"],
        "genders F+M": ["m0-ann", "m0-bob", "m1-ann", "m1-bob"],
        "1 speaker": ["m2-cy"],
        "2 speakers": ["m0-ann", "m0-bob", "m1-ann", "m1-bob"],
    }


def test_voices_that_are_no_targets_count(made: MixtureSet) -> None:
    """Of m0 ann alone is enrolled; bob speaks all the same."""
    for name in ("ref.scp", "enroll.scp", "utt2spk"):
        lines = (made.folder / name).read_text().splitlines(True)
        (made.folder / name).write_text("".join(line for line in lines if not line.startswith("m0-bob ")))
    (made.estimates / "m0-bob.wav").unlink()
    first = score(made).items[0]
    assert (first.key, first.speakers, first.genders) == ("m0-ann", 2, "F+M")
    (made.folder / "spk2gender").write_text("ann f\ncy f\n")
    found = score(made)
    assert (found.items[0].speakers, found.items[0].genders) == (2, "")
    assert list(found.groups()["1 speaker"]) == [item for item in found.items if item.key == "m2-cy"]
    assert [item.key for item in found.groups()["genders F"]] == ["m2-cy"]


def test_a_voice_that_is_silent_is_none_of_the_mixture(made: MixtureSet) -> None:
    soundfile.write(made.folder / "zeros.wav", np.zeros(len(made.samples["m1"])), RATE)
    with open(made.folder / "ref.scp", "a") as stream:
        stream.write(f"m1-cy {made.folder / 'zeros.wav'}\n")
    assert {item.speakers for item in score(made).items if item.mixture == "m1"} == {2}


def test_a_loud_estimate_is_as_good(made: MixtureSet) -> None:
    def leveled() -> dict[str, Measured]:
        found = score(made).items[0].measured
        return {name: each for name, each in found.items() if not name.startswith("power")}

    before = leveled()
    made.estimate("m0-ann", 50 * (made.samples["m0-ann"] + 0.1 * made.samples["m0-bob"]))
    after = leveled()
    assert after.keys() == before.keys()
    for name, each in after.items():
        assert each.estimate == pytest.approx(before[name].estimate, abs=1e-3), name


def test_swaps_by_embedding(made: MixtureSet) -> None:
    voices = Embeddings(["m0-ann", "m0-bob", "m1-ann"], np.eye(3, dtype=np.float32))
    found = Embeddings(["m0-ann", "m0-bob", "m1-ann"], np.array([[2, 1, 0], [3, 1, 0], [0, 0, 1]], np.float32))
    result = score(made, embeddings=found, voices=voices)
    # Of m1 bob's enrolment is not known, so that nothing can be said of ann's estimate.
    assert [item.nearest_voice for item in result.items] == ["ann", "ann", "", "", "", ""]
    assert result.shares()["swapped_voice"] == Share(1, 2)
    with pytest.raises(ConfigError, match="both estimates and enrolments"):
        score(made, embeddings=found)
    with pytest.raises(DataError, match="3 values an embedding"):
        score(made, embeddings=found, voices=Embeddings(["m0-ann"], np.ones((1, 2), np.float32)))


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.ones(100), RATE, "lasts 0.013 s, its mixture 2.000 s"),
        (np.ones(32000), 2 * RATE, "is at 16000 Hz"),
        (np.full(16000, np.nan), RATE, "NaN"),
    ],
)
def test_estimates_that_cannot_be_used(made: MixtureSet, samples: np.ndarray, rate: int, message: str) -> None:
    made.estimate("m0-ann", samples, rate)
    found = score(made)
    assert message in found.items[0].error
    assert message in found.items[0].failures["si_sdr"]
    assert len(found.errors) == 2


def test_an_estimate_may_lack_a_few_samples(made: MixtureSet) -> None:
    whole = score(made).items[0].measured["si_sdr"].estimate
    made.estimate("m0-ann", (made.samples["m0-ann"] + 0.1 * made.samples["m0-bob"])[:-100])  # nobody speaks there
    assert score(made).items[0].measured["si_sdr"].estimate == pytest.approx(whole, abs=1e-3)


def test_references_that_contradict(made: MixtureSet) -> None:
    rttm = (made.folder / "rttm").read_text()
    (made.folder / "rttm").write_text("".join(line for line in rttm.splitlines(True) if "ann" not in line))
    with pytest.raises(DataError, match="says nothing of 'ann' in 'm0'"):
        score(made)
    (made.folder / "rttm").write_text("")
    assert "power_qs" not in score(made).items[0].measured
    soundfile.write(made.folder / "wav" / "m0-bob.wav", np.ones(100), RATE)
    with pytest.raises(DataError, match="100 samples at 8000 Hz, its mixture 'm0' 16000"):
        score(made)
    (made.folder / "spk2gender").write_text("ann x\n")
    with pytest.raises(DataError, match="says that 'ann' is 'x'"):
        read_items(made.folder)


def test_estimates_of_another_set(made: MixtureSet, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name none of the 6 targets, such as 'm0-ann'"):
        score_extraction(read_items(made.folder), {"x": "y.wav"}, ())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no estimates"):
        read_estimates(tmp_path / "empty")
    (made.estimates / "m0-ann.flac").touch()
    with pytest.raises(DataError, match=r"both m0-ann\.flac and m0-ann\.wav"):
        read_estimates(made.estimates)
    with pytest.raises(ConfigError, match="did you mean 'sdr'"):
        score_extraction(read_items(made.folder), {}, ["sdri"])


def test_a_scp_and_two_processes_score_alike(made: MixtureSet) -> None:
    alone = score(made, "sdr", replicates=20)
    paths = read_estimates(made.estimates)
    (made.folder / "est.scp").write_text("".join(f"{key} {path}\n" for key, path in paths.items()))
    again = score_extraction(
        read_items(made.folder), read_estimates(made.folder / "est.scp"), ["sdr"], replicates=20, workers=2
    )
    assert again.to_dict() == alone.to_dict()


def test_scores_come_back_from_their_file(made: MixtureSet, tmp_path: Path) -> None:
    found = score(made, replicates=20, seed=3)
    (tmp_path / "scores.json").write_text(json.dumps(found.to_dict(), allow_nan=False))
    assert read_scores(tmp_path / "scores.json") == found
    (tmp_path / "scores.json").write_text('{"items": [{}]}')
    with pytest.raises(DataError, match="no scores of extraction"):
        read_scores(tmp_path / "scores.json")


def test_means_and_intervals_against_plain_ones() -> None:
    rng = np.random.default_rng(0)
    gains = rng.normal(5, 2, 60)
    items = tuple(
        ItemScore(f"k{n:02d}", f"m{n}", f"s{n % 10}", 1.0, measured={"si_sdr": Measured(1.0, 1.0 + gain)})
        for n, gain in enumerate(gains)
    )
    found = ExtractionScore(items, replicates=2000).summary("si_sdr").improvement
    assert found.mean == pytest.approx(gains.mean(), abs=1e-6)
    assert found.median == pytest.approx(np.median(gains), abs=1e-6)
    # Ten speakers with six values each: the interval is that of ten means.
    means = gains.reshape(6, 10).mean(axis=0)
    spread = 1.96 * means.std() / np.sqrt(10)
    assert found.interval.low == pytest.approx(gains.mean() - spread, abs=0.15 * spread)
    assert found.interval.high == pytest.approx(gains.mean() + spread, abs=0.15 * spread)
    assert mean_interval(gains, ["one"] * 60, 100) is None
    with pytest.raises(ConfigError):
        mean_interval(gains, ["a", "b"] * 30, 1)
