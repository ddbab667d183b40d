"""Quality measures against known signals, the trial generator against its promises, and what they are for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from speakerkit.audio import audio_info
from speakerkit.data.ark import Embeddings, write_embeddings
from speakerkit.errors import ConfigError, DataError
from speakerkit.verification.calibration import fit_linear
from speakerkit.verification.metrics import cllr, eer
from speakerkit.verification.quality import (
    Quality,
    draw_trials,
    estimate_snr,
    log_of,
    measure,
    read_quality,
    trial_quality,
    write_quality,
)
from speakerkit.verification.trials import Scores, Trials, read_scores, read_trials, write_scores
from tests.command import speakerkit


@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("snr", [0, 5, 10, 20, 40])
def test_snr_of_known_mixtures(rate: int, snr: float) -> None:
    """Bursts of low-passed noise in steady white noise; the level of the bursts is that of where they sound."""
    rng = np.random.default_rng(0)
    count = 6 * rate
    active = np.sin(np.pi * np.arange(count) / rate) > 0
    speech = np.convolve(rng.normal(size=count), np.ones(8) / 8, mode="same") * active
    speech *= np.sqrt(10 ** (snr / 10) / np.mean(speech[active] ** 2))
    noisy = speech + rng.normal(size=count)
    assert estimate_snr(noisy, rate) == pytest.approx(snr, abs=1.5)
    assert estimate_snr(1e-3 * noisy, rate) == pytest.approx(estimate_snr(noisy, rate), abs=1e-6)


def test_snr_at_its_limits() -> None:
    quiet = np.concatenate([np.zeros(8000), np.ones(8000)])
    assert estimate_snr(quiet, 16000) == 60
    assert estimate_snr(np.zeros(16000), 16000) == -10
    assert estimate_snr(np.random.default_rng(0).normal(size=16000), 16000) < 3
    for useless in (np.zeros(100), np.full(16000, np.nan)):
        with pytest.raises(DataError, match="400 finite samples"):
            estimate_snr(useless, 16000)


def test_measures_are_collected_by_key() -> None:
    found = measure(["b", "a"], {"snr": {"a": 1.0, "b": 2.0}, "count": lambda keys: [len(key) for key in keys]})
    assert found.names == ("snr", "count")
    np.testing.assert_array_equal(found.of(["a", "b"]), [[1, 1], [2, 1]])
    with pytest.raises(DataError, match="snr: is not known of 'c'"):
        measure(["a", "c"], {"snr": {"a": 1.0}})
    with pytest.raises(DataError, match="no measures of 'c'"):
        found.of(["a", "c"])
    with pytest.raises(DataError, match="'a' is not finite"):
        measure(["a"], {"snr": {"a": float("nan")}})
    with pytest.raises(DataError, match="twice"):
        Quality(("a", "a"), ("x",), np.zeros((2, 1)))
    with pytest.raises(DataError):
        measure([], {"x": {}})


def test_logarithms_of_what_is_positive() -> None:
    assert log_of({"a": np.e}) == {"a": 1.0}
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(DataError, match="must be positive"):
            log_of({"a": bad})


def test_sides_of_a_trial_do_not_matter() -> None:
    quality = measure(["a", "b", "c"], {"x": {"a": 1.0, "b": 2.0, "c": 3.0}, "y": {"a": 9.0, "b": 5.0, "c": 7.0}})
    names, values = trial_quality(quality, Trials.from_pairs(["a", "b", "c"], ["b", "a", "c"]))
    assert names == ("x.min", "y.min", "x.max", "y.max")
    np.testing.assert_array_equal(values, [[1, 5, 2, 9], [1, 5, 2, 9], [3, 7, 3, 7]])


def test_tables_come_back_as_they_were(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = Quality(("a", "b/c"), ("snr", "log_duration"), rng.normal(size=(2, 2)))
    write_quality(tmp_path / "q.tsv", made)
    again = read_quality(tmp_path / "q.tsv")
    assert (again.keys, again.names) == (made.keys, made.names)
    np.testing.assert_array_equal(again.values, made.values)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no table"),
        ("a\t1\n", "no table"),
        ("key\na\n", "no table"),
        ("key\tx\n", "no table"),
        ("key\tx\na\tone\n", "line 2"),
        ("key\tx\na\t1\t2\n", "line 2 has 3 columns"),
        ("key\tx\na\tnan\n", "not finite"),
        ("key\tx\na\t1\na\t2\n", "twice"),
    ],
)
def test_damaged_tables_are_refused(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "q.tsv").write_text(text)
    with pytest.raises(DataError, match=fault):
        read_quality(tmp_path / "q.tsv")


def corpus(speakers: int, recordings: int, seed: int = 0) -> tuple[dict[str, str], dict[str, float]]:
    rng = np.random.default_rng(seed)
    owner = {f"s{n % speakers}-{n}": f"s{n % speakers}" for n in range(speakers * recordings)}
    return owner, dict(zip(owner, rng.uniform(1, 12, len(owner)).tolist(), strict=True))


def test_drawn_trials_keep_their_promises() -> None:
    owner, seconds = corpus(50, 40)
    trials = draw_trials(owner, seconds, 1200, seed=5)
    assert len(trials) == 1200
    pairs = list(trials.pairs())
    assert len({frozenset(pair) for pair in pairs}) == 1200  # none twice, whichever side is first
    assert all(one != other for one, other in pairs)
    np.testing.assert_array_equal(trials.labels, [owner[one] == owner[other] for one, other in pairs])
    kinds = {"short-short": 0, "short-long": 0, "long-long": 0}
    for (one, other), label in zip(pairs, np.asarray(trials.labels), strict=True):
        assert min(seconds[one], seconds[other]) >= 2
        ends = ["short" if seconds[key] < 6 else "long" for key in (one, other)]
        kinds["-".join(ends)] += 1 if label else -1
    assert kinds == {"short-short": 0, "short-long": 0, "long-long": 0}
    per_speaker = np.unique(
        [owner[one] for (one, _), label in zip(pairs, np.asarray(trials.labels), strict=True) if label],
        return_counts=True,
    )
    assert len(per_speaker[0]) == 50
    assert per_speaker[1].max() <= 18


def test_drawing_depends_on_the_seed_only() -> None:
    owner, seconds = corpus(10, 20)
    first = list(draw_trials(owner, seconds, 120, seed=1).pairs())
    turned = dict(reversed(owner.items())), dict(reversed(seconds.items()))
    assert list(draw_trials(*turned, 120, seed=1).pairs()) == first
    assert list(draw_trials(owner, seconds, 120, seed=2).pairs()) != first


def test_small_sets_give_all_they_have(caplog: pytest.LogCaptureFixture) -> None:
    owner = {f"{speaker}{number}": speaker for speaker in "abc" for number in range(4)}
    seconds = {key: 3.0 if int(key[1]) < 2 else 9.0 for key in owner}
    trials = draw_trials(owner, seconds, 600)
    # Target pairs: 3 speakers x 1 short, 4 mixed, 1 long; there are more nontargets of each.
    assert np.asarray(trials.labels).sum() == 3 * (1 + 4 + 1)
    assert len(trials) == 36
    assert "short-short trials: 3 of each kind instead of 100" in caplog.text


def test_more_nontargets_for_low_false_accept_rates() -> None:
    owner, seconds = corpus(10, 20)
    balanced, many = (
        draw_trials(owner, seconds, 120, seed=1),
        draw_trials(owner, seconds, 120, nontargets_each=5, seed=1),
    )
    assert np.sum(many.labels) == np.sum(balanced.labels) == 60
    assert len(many) == 60 + 5 * 60
    assert all(
        owner[one] != owner[other] for (one, other), same in zip(many.pairs(), many.labels, strict=True) if not same
    )


def test_one_speaker_with_many_recordings_needs_little_memory() -> None:
    owner = {f"a{n}": "a" for n in range(3000)} | {f"b{n}": "b" for n in range(3000)}
    trials = draw_trials(owner, dict.fromkeys(owner, 9.0), 600)
    assert len(trials) == 200  # long-long only; nine million pairs a speaker to choose from
    assert len({frozenset(pair) for pair in trials.pairs()}) == 200


def test_what_cannot_be_drawn_from() -> None:
    owner, seconds = corpus(3, 3)
    with pytest.raises(DataError, match="none is known of"):
        draw_trials(owner, {}, 60)
    with pytest.raises(DataError, match="none is known of 's0-0'"):
        draw_trials(owner, {**seconds, "s0-0": float("nan")}, 60)
    with pytest.raises(DataError, match="long enough"):
        draw_trials(owner, seconds, 60, shortest=100, boundary=200)
    with pytest.raises(DataError, match="long enough"):
        draw_trials({"a": "x", "b": "x"}, {"a": 9.0, "b": 9.0}, 60)
    for settings in ({"count": 5}, {"shortest": 7.0}, {"shortest": -1.0}):
        with pytest.raises(ConfigError):
            draw_trials(owner, seconds, **settings)  # type: ignore[arg-type]


def test_quality_makes_ratios_better() -> None:
    """Short recordings have scores that are spread more and moved; a map that knows them beats one that does not."""
    rng = np.random.default_rng(0)
    keys = [f"u{n}" for n in range(400)]
    seconds = dict(zip(keys, rng.uniform(1, 20, 400).tolist(), strict=True))
    pairs = rng.integers(400, size=(20_000, 2))
    trials = Trials.from_pairs([keys[n] for n in pairs[:, 0]], [keys[n] for n in pairs[:, 1]], rng.random(20_000) < 0.5)
    labels = np.asarray(trials.labels)
    quality = measure(keys, {"log_duration": log_of(seconds)})
    names, values = trial_quality(quality, trials)
    scores = 2.0 * labels + values[:, 0] + rng.normal(size=len(labels))
    plain = fit_linear(scores, labels)
    columns = np.column_stack([scores, values])
    aware = fit_linear(columns, labels, ("score", *names), systems=1)
    assert cllr(aware(columns), labels) < cllr(plain(scores), labels) - 0.05
    assert eer(aware(columns), labels).value < eer(scores, labels).value - 0.02
    np.testing.assert_allclose(aware.weights, [2, -2, 0], atol=0.15)  # what the scores were made with


def test_commands_from_recordings_to_ratios(write_wav: Callable[..., Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    keys = [f"s{speaker}-{number}" for speaker in range(6) for number in range(6)]
    lengths = rng.uniform(0.5, 3, len(keys)).round(1)
    lines = [
        f"{key} {write_wav(f'{key}.wav', float(length), seed=n)}\n"
        for n, (key, length) in enumerate(zip(keys, lengths, strict=True))
    ]
    (tmp_path / "wav.scp").write_text("".join(lines))
    (tmp_path / "utt2spk").write_text("".join(f"{key} {key[:2]}\n" for key in keys))
    drawing = [
        "score",
        "draw-trials",
        tmp_path,
        tmp_path / "trials",
        "--count",
        60,
        "--shortest",
        0.5,
        "--boundary",
        1.5,
    ]
    assert speakerkit(*drawing).code == 0
    centres = rng.normal(size=(6, 8))
    vectors = np.array([centres[int(key[1])] + rng.normal(size=8) for key in keys], dtype=np.float32)
    scp = write_embeddings(tmp_path / "e.npz", Embeddings(keys, vectors))
    impostors = write_embeddings(
        tmp_path / "c.npz", Embeddings([f"c{n}" for n in range(20)], rng.normal(size=(20, 8)).astype(np.float32))
    )
    table = tmp_path / "q.tsv"
    ran = speakerkit(
        "score", "quality", scp, table, "--scp", tmp_path / "wav.scp", "--snr", "--cohort", impostors, "--top", 5
    )
    assert ran.code == 0, ran
    found = read_quality(table)
    assert found.names == ("log_duration", "log_magnitude", "cohort_mean", "snr")
    key = keys[3]
    row = found.of([key])[0]
    assert row[0] == pytest.approx(np.log(audio_info(tmp_path / f"{key}.wav").seconds))
    assert row[1] == pytest.approx(np.log(np.linalg.norm(vectors[3].astype(float))))
    others = np.load(tmp_path / "c.npz")["embeddings"].astype(float)
    cosines = others @ vectors[3] / np.linalg.norm(others, axis=1) / np.linalg.norm(vectors[3])
    assert row[2] == pytest.approx(np.sort(cosines)[-5:].mean(), abs=1e-6)

    assert speakerkit("score", "cosine", scp, tmp_path / "trials", tmp_path / "cosine").code == 0
    learn = ["score", "fit", tmp_path / "map.json", tmp_path / "cosine", "--quality", table]
    assert speakerkit(*learn).code == 0
    apply = ["score", "llr", tmp_path / "map.json", tmp_path / "llr", tmp_path / "cosine"]
    assert speakerkit(*apply, "--quality", table).code == 0
    ratios = read_scores(tmp_path / "llr")
    assert ratios.trials.labels is not None
    assert list(ratios.trials.pairs()) == list(read_trials(tmp_path / "trials").pairs())
    ran = speakerkit(*apply)
    assert ran.code == 2
    assert "log_duration.min" in ran.errors[0]
    unknown = Scores(Trials.from_pairs(["x"], [keys[0]], [True]), np.zeros(1))
    write_scores(tmp_path / "cosine", unknown)
    ran = speakerkit(*learn)
    assert ran.code == 2
    assert "no measures of 'x'" in ran.errors[0]
    for arguments in ([scp, table], [scp, table, "--utt2dur", tmp_path / "none", "--snr"]):
        assert speakerkit("score", "quality", *arguments).code == 2
