"""Calibration against scikit-learn, closed forms and the definition; maps and calibration.json on disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from speakerkit.bundle import Calibration, read_bundle
from speakerkit.errors import BundleError, ConfigError, DataError
from speakerkit.verification.calibration import (
    LinearMap,
    PavMap,
    calibrate,
    fit_linear,
    fit_pav,
    read_map,
    stack_scores,
    too_few_errors,
    write_map,
)
from speakerkit.verification.metrics import cllr, error_curve, min_cllr
from speakerkit.verification.trials import Scores, Trials, read_scores, write_scores
from tests.command import speakerkit

TRIALS = st.tuples(
    st.lists(st.integers(-4, 4), min_size=1, max_size=25), st.lists(st.integers(-4, 4), min_size=1, max_size=25)
)


def gaussians(count: int, distance: float = 2.0, systems: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.random(count) < 0.3
    return distance * labels[:, None] + rng.normal(size=(count, systems)), labels


def listed(scores: np.ndarray, labels: np.ndarray | None, source: str = "trials") -> Scores:
    count = len(scores)
    return Scores(
        Trials.from_pairs([f"e{n}" for n in range(count)], [f"t{n}" for n in range(count)], labels, source), scores
    )


@pytest.mark.parametrize("prior", [0.01, 0.5, 0.9])
@pytest.mark.parametrize("systems", [1, 3])
def test_logistic_regression_equals_scikit_learn(prior: float, systems: int) -> None:
    """With weights that stand for the prior; the offset differs by its logit."""
    columns, labels = gaussians(3000, systems=systems)
    names = tuple(f"s{n}" for n in range(systems))
    ours = fit_linear(columns, labels, names, prior=prior, ridge=0)
    weights = np.where(labels, prior / labels.sum(), (1 - prior) / (~labels).sum())
    theirs = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000).fit(columns, labels, weights * len(labels))
    np.testing.assert_allclose(ours.weights, theirs.coef_[0], rtol=1e-5)
    assert ours.offset == pytest.approx(theirs.intercept_[0] - logit(prior), rel=1e-5, abs=1e-5)


def test_the_objective_is_at_its_least() -> None:
    columns, labels = gaussians(500, systems=2)
    prior = 0.2

    def objective(values: np.ndarray) -> float:
        margins = columns @ values[:2] + values[2] + logit(prior)
        return float(
            prior * np.mean(np.logaddexp(0, -margins[labels]))
            + (1 - prior) * np.mean(np.logaddexp(0, margins[~labels]))
        )

    found = fit_linear(columns, labels, ("a", "b"), prior=prior, ridge=0)
    ours = objective(np.array([*found.weights, found.offset]))
    best = minimize(objective, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-14})
    assert ours <= best.fun + 1e-12
    assert ours == pytest.approx(best.fun, abs=1e-9)


def test_gaussian_scores_have_a_known_map() -> None:
    """N(2, 1) against N(0, 1): LLR = 2 x - 2."""
    columns, labels = gaussians(200_000)
    found = fit_linear(columns, labels)
    assert found.weights[0] == pytest.approx(2, abs=0.03)
    assert found.offset == pytest.approx(-2, abs=0.03)
    assert cllr(found(columns), labels) == pytest.approx(min_cllr(columns[:, 0], labels), abs=1e-3)


def test_shift_and_scale_of_the_scores_do_not_matter() -> None:
    columns, labels = gaussians(400, systems=2)
    ratios = fit_linear(columns, labels, ("a", "b"))(columns)
    moved = columns * [1e6, 1e-6] + [-5e6, 3.0]
    np.testing.assert_allclose(fit_linear(moved, labels, ("a", "b"))(moved), ratios, rtol=1e-6, atol=1e-6)


def test_fusion_is_better_than_its_systems() -> None:
    columns, labels = gaussians(20_000, systems=2)
    fused = fit_linear(columns, labels, ("a", "b"))
    single = [min_cllr(column, labels) for column in columns.T]
    assert cllr(fused(columns), labels) < 0.8 * min(single)
    np.testing.assert_allclose(fused.weights, [2, 2], atol=0.1)
    assert fused.offset == pytest.approx(-4, abs=0.15)


def test_separated_scores_have_finite_weights_by_the_ridge_only() -> None:
    """A tenth over the trials of the rarer kind."""
    scores, labels = np.array([0.1, 0.2, 0.7, 0.8]), np.array([False, False, True, True])
    found = fit_linear(scores, labels)
    assert 0 < found.weights[0] < 1000
    assert found(0.45 * np.ones(1))[0] == pytest.approx(0, abs=1e-6)
    theirs = LogisticRegression(C=1 / (4 * 0.05), tol=1e-12, max_iter=10_000).fit(
        ((scores - scores.mean()) / scores.std())[:, None], labels
    )
    assert found.weights[0] * scores.std() == pytest.approx(theirs.coef_[0, 0], rel=1e-4)
    many, truth = np.repeat(scores, 500), np.repeat(labels, 500)
    assert 4 < fit_linear(many, truth)(many).max() < 1.5 * np.log(1000)  # the rule of succession says log(1001)
    for touching in (scores, np.array([0.1, 0.5, 0.5, 0.8])):
        with pytest.raises(DataError, match="do not overlap"):
            fit_linear(touching, labels, ridge=0)


@given(TRIALS)
@settings(max_examples=150)
def test_pav_equals_isotonic_regression(trials: tuple[list[int], list[int]]) -> None:
    """With one target below and one nontarget above all."""
    scores = np.array([*trials[0], *trials[1]], float)
    labels = np.arange(len(scores)) < len(trials[0])
    padded = np.array([scores.min() - 1, *scores, scores.max() + 1])
    truth = np.array([True, *labels, False])
    shares = IsotonicRegression().fit(padded, truth.astype(float)).predict(scores)
    expected = logit(shares) - np.log(labels.sum() / (~labels).sum())
    np.testing.assert_allclose(fit_pav(scores, labels)(scores), expected, atol=1e-9)


def test_pav_reaches_the_least_cllr() -> None:
    columns, labels = gaussians(50_000)
    ratios = fit_pav(columns[:, 0], labels)(columns)
    assert cllr(ratios, labels) == pytest.approx(min_cllr(columns[:, 0], labels), abs=2e-4)
    outside = fit_pav(columns[:, 0], labels)(np.array([-100.0, 100.0]))
    assert np.isfinite(outside).all()
    assert outside[0] == ratios.min()
    assert outside[1] == ratios.max()


@pytest.mark.parametrize(
    ("columns", "labels", "fault"),
    [
        ([0.1, 0.2], [True, True], "2 target and 0 nontarget"),
        ([0.1, 0.2], [False, False], "0 target and 2 nontarget"),
        ([0.1, np.nan], [True, False], "NaN"),
        ([0.1, -np.inf], [True, False], "NaN or beyond"),
        ([1e308, -1e308], [True, False], "NaN or beyond"),
        ([0.1], [True], "1 target and 0 nontarget"),
        ([0.3, 0.3], [True, False], "'score' is the same"),
        ([0.1, 0.2, 0.15], [True, False, False], "do not mean the same speaker"),
        ([0.1, 0.2], [True], "labels of shape"),
        ([0.1, 0.2], None, "labels of shape"),
    ],
)
def test_scores_that_teach_nothing(columns: list[float], labels: list[bool] | None, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        fit_linear(np.array(columns), labels)  # type: ignore[arg-type]
    if "same" not in fault:
        with pytest.raises(DataError, match=fault):
            fit_pav(np.array(columns), labels)  # type: ignore[arg-type]


@pytest.mark.parametrize(("prior", "ridge"), [(0, 0), (1, 0), (np.nan, 0), (0.5, -1)])
def test_impossible_settings(prior: float, ridge: float) -> None:
    columns, labels = gaussians(20)
    with pytest.raises(ConfigError):
        fit_linear(columns, labels, prior=prior, ridge=ridge)


def test_systems_must_have_scored_the_same_trials() -> None:
    columns, labels = gaussians(4)
    scores = listed(columns[:, 0], labels, "one")
    assert stack_scores([scores, listed(-columns[:, 0], None)]).shape == (4, 2)
    pairs = list(scores.trials.pairs())
    swapped = Trials.from_pairs([pairs[n][0] for n in (0, 2, 1, 3)], [pairs[n][1] for n in (0, 2, 1, 3)], source="two")
    with pytest.raises(DataError, match="two: trial 2 is not that of one"):
        stack_scores([scores, Scores(swapped, columns[:, 0])])
    with pytest.raises(DataError, match="has 3 trials, one 4"):
        stack_scores([scores, listed(columns[:3, 0], labels[:3])])
    with pytest.raises(DataError, match="trial 1 is not that"):
        stack_scores([scores, listed(columns[:, 0], ~labels)])
    unlabelled = listed(columns[:, 0], None, "bare")
    with pytest.raises(DataError, match="other: trial 1 is not that of one"):
        stack_scores([unlabelled, scores, listed(columns[:, 0], ~labels, "other")])
    with pytest.raises(DataError, match="no scores"):
        stack_scores([])


def test_maps_come_back_as_they_were(tmp_path: Path) -> None:
    columns, labels = gaussians(300, systems=2)
    linear, pav = fit_linear(columns, labels, ("a", "b"), systems=1), fit_pav(columns[:, 0], labels)
    for score_map, part in ((linear, columns), (pav, columns[:, :1])):
        write_map(tmp_path / "map.json", score_map, {"made": "here"})
        again = read_map(tmp_path / "map.json")
        assert (type(again), again.columns, again.systems) == (type(score_map), score_map.columns, score_map.systems)
        np.testing.assert_array_equal(again(part), score_map(part))
    assert isinstance(linear, LinearMap)
    assert isinstance(pav, PavMap)


MAP_OF_A = '{"format": "speakerkit-scoremap-1", "columns": ["a"], '


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 10**5,
        '{"format": "other"}',
        MAP_OF_A + '"kind": "x", "systems": 1, "scores": [1], "llrs": [1]}',
        MAP_OF_A + '"kind": "pav", "systems": 1, "scores": [2, 1], "llrs": [1, 2]}',
        MAP_OF_A + '"kind": "linear", "systems": 1, "weights": [], "offset": 1}',
        MAP_OF_A + '"kind": "linear", "systems": 1, "weights": [NaN], "offset": 1}',
        MAP_OF_A + '"kind": "linear", "systems": 1, "weights": [1e308], "offset": 1}',
        MAP_OF_A + '"kind": "linear", "systems": 2, "weights": [1], "offset": 1}',
    ],
)
def test_damaged_maps_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(DataError, match="is no map"):
        read_map(tmp_path / "map.json")


def test_thresholds_for_asked_rates() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(5000) < 1000
    scores = listed(np.clip(0.1 * rng.normal(size=5000) + 0.5 * labels, -1, 1), labels, "dev")
    found = calibrate(scores, "abc", far=[0.01, 0.001], frr=[0.05])
    curve = error_curve(scores.scores, labels)
    assert [(row["rate"], row["asked"]) for row in found.thresholds] == [("far", 0.01), ("far", 0.001), ("frr", 0.05)]
    for row in found.thresholds:
        assert row["far"] == np.mean(scores.scores[~labels] >= row["threshold"])
        assert row["frr"] == np.mean(scores.scores[labels] < row["threshold"])
        assert row[row["rate"]] <= row["asked"]
    assert found.threshold == curve.at_far(0.01).threshold
    assert found.source == "FAR at most 1 % on 5000 trials of dev"
    assert too_few_errors(found) == ["FAR 0.001 rests on 4 errors"]
    assert found.data["cllr"] == pytest.approx(found.data["min_cllr"], abs=0.01)
    assert calibrate(scores, "abc", frr=[0.05]).threshold == curve.at_frr(0.05).threshold
    assert calibrate(scores, "abc").threshold == curve.eer().threshold
    assert too_few_errors(calibrate(scores, "abc")) == ["EER 0.7 % rests on 7 errors"]
    assert found.llr(0.6) == pytest.approx(found.scale * 0.6 + found.offset)
    with pytest.raises(ConfigError):
        calibrate(scores, "abc", far=[1.0])


def test_a_rate_that_no_cosine_keeps() -> None:
    scores = listed(np.array([1.0, 1.0, 0.2]), np.array([True, False, False]))
    with pytest.raises(DataError, match="no threshold up to 1"):
        calibrate(scores, "abc", far=[0.0])


@pytest.fixture
def copy(small_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_bundle, tmp_path / "copy"))


def test_a_calibration_comes_back_and_knows_its_model(copy: Path) -> None:
    bundle = read_bundle(copy)
    made = Calibration(0.25, "dev", bundle.digest(), 12.5, -3.0, ({"rate": "far", "asked": 0.01},), {"trials": "dev"})
    bundle.write_calibration(made)
    assert read_bundle(copy).calibration() == made
    assert read_bundle(copy).threshold() == (0.25, "dev")
    weights, graph = copy / "model.safetensors", copy / "model.onnx"
    graph_bytes = graph.read_bytes()
    graph.unlink()  # as before `export`
    assert read_bundle(copy).calibration() == made
    graph.write_bytes(graph_bytes)
    weights.unlink()  # what is left was exported from these weights
    assert read_bundle(copy).calibration() == made
    bundle.write_calibration(Calibration(0.25, "dev", "0" * 64))
    with pytest.raises(BundleError, match="calibration of other weights"):
        read_bundle(copy).threshold()
    bundle.write_calibration(Calibration(0.25, "dev"))
    assert read_bundle(copy).calibration() == Calibration(0.25, "dev")
    assert Calibration(0.25, "dev").llr(0.3) is None


@pytest.mark.parametrize(
    "change",
    [
        {"format": "speakerkit-calibration-9"},
        {"llr": {"scale": 1}},
        {"llr": {"scale": -1, "offset": 0}},
        {"llr": {"scale": float("nan"), "offset": 0}},
        {"llr": {"scale": 1, "offset": float("inf")}},
        {"llr": {"scale": 1e308, "offset": 1e308}},
        {"llr": []},
        {"model_sha256": "0"},
        {"model_sha256": None},
        {"thresholds": 3},
        {"thresholds": [1]},
        {"data": 1},
    ],
)
def test_damaged_calibrations_are_refused(copy: Path, change: dict[str, object]) -> None:
    (copy / "calibration.json").write_text(json.dumps({"threshold": 0.1, "source": "dev", **change}))
    with pytest.raises(BundleError, match=r"calibration\.json: holds no threshold"):
        read_bundle(copy).calibration()


def test_what_a_hostile_file_says_is_printable(copy: Path) -> None:
    (copy / "calibration.json").write_text(json.dumps({"threshold": 0.1, "source": "a\n\x1b[2Jb\ud800"}))
    assert read_bundle(copy).calibration() == Calibration(0.1, r"a \x1b[2Jb\ud800")


@pytest.fixture
def lists(write_wav: Callable[..., Path], tmp_path: Path) -> Path:
    """Eight recordings of four "speakers" of noise, and trials of them."""
    keys = [f"s{speaker}-{number}" for speaker in range(4) for number in range(2)]
    (tmp_path / "wav.scp").write_text(
        "".join(f"{key} {write_wav(f'{key}.wav', 1.0 + n / 20, seed=n)}\n" for n, key in enumerate(keys))
    )
    rows = [
        f"{one} {other} {'target' if one[:2] == other[:2] else 'nontarget'}\n"
        for n, one in enumerate(keys)
        for other in keys[n + 1 :]
    ]
    (tmp_path / "trials").write_text("".join(rows))
    return tmp_path


def test_from_trials_to_decisions(copy: Path, lists: Path, tmp_path: Path) -> None:
    scp, scores = lists / "wav.scp", tmp_path / "scores"
    assert speakerkit("embed", "-m", copy, "--scp", scp, "--out", lists / "e.npz").code == 0
    assert speakerkit("score", "cosine", lists / "e.npz", lists / "trials", scores).code == 0
    # Noise has no speakers: call the more alike half of the pairs targets, but for a few.
    cosines = read_scores(scores)
    labels = cosines.scores > np.median(cosines.scores)
    labels[::9] = ~labels[::9]
    pairs = cosines.trials.pairs()
    (lists / "toy").write_text(
        "".join(
            f"{one} {other} {'target' if label else 'nontarget'}\n"
            for (one, other), label in zip(pairs, labels, strict=True)
        )
    )
    ran = speakerkit(
        "calibrate", "-m", copy, "--scp", scp, "--trials", lists / "toy", "--far", 0.3, "--frr", 0.2, "--scores", scores
    )
    assert ran.code == 0, ran
    assert "threshold" in ran.out
    assert "rests on" in ran.err
    found = read_bundle(copy).calibration()
    assert found is not None
    assert found.model_sha256 == read_bundle(copy).digest()
    assert (found.data["recordings"], found.data["targets"] + found.data["nontargets"]) == (8, 28)
    assert found.threshold == error_curve(read_scores(scores).scores, labels).at_far(0.3).threshold

    first, second = lists / "s0-0.wav", lists / "s1-1.wav"
    result = json.loads(speakerkit("similarity", "-m", copy, first, second, "--json").out)
    assert result["llr"] == found.llr(result["cosine"])
    assert result["threshold_source"] == found.source
    assert result["decision"] == ("same" if result["cosine"] >= found.threshold else "different")
    shown = speakerkit("similarity", "-m", copy, first, second).out
    for word in (
        "cosine ",
        "LLR ",
        f"threshold {found.threshold:.4f}",
        f"FAR at most 30 % on 28 trials of {lists.name}/toy",
    ):
        assert word in shown
    decided = [
        json.loads(speakerkit("similarity", "-m", copy, first, second, "--json", "--threshold", value).out)
        for value in (-1, 1)
    ]
    assert [decision["decision"] for decision in decided] == ["same", "different"]
    assert decided[0]["llr"] == result["llr"]

    before = (copy / "calibration.json").read_bytes()
    again = speakerkit(
        "calibrate", "-m", copy, "--embeddings", lists / "e.npz", "--trials", lists / "toy", "--far", 0.3, "--frr", 0.2
    )
    assert again.code == 0, again
    assert (copy / "calibration.json").read_bytes() == before


def test_what_cannot_be_calibrated_leaves_the_old_one(copy: Path, lists: Path) -> None:
    read_bundle(copy).write_calibration(Calibration(0.1, "old"))
    (lists / "self").write_text("s0-0 s0-0 target\ns0-0 s1-0 nontarget\n")
    (lists / "bare").write_text("s0-0 s0-1\n")
    (lists / "more").write_text("s0-0 s0-1 target\ns0-0 x nontarget\n")
    (lists / "broken.scp").write_text((lists / "wav.scp").read_text().replace("s0-1.wav", "none.wav"))
    for arguments, message in (
        (["--scp", lists / "wav.scp", "--trials", lists / "self"], "compares 's0-0' with itself"),
        (["--scp", lists / "wav.scp", "--trials", lists / "bare"], "no labels"),
        (["--scp", lists / "wav.scp", "--trials", lists / "more"], "does not list 'x'"),
        (["--scp", lists / "broken.scp", "--trials", lists / "trials"], "1 of 8 recordings failed"),
        (["--trials", lists / "trials"], "takes either"),
        (["--scp", lists / "wav.scp", "--trials", lists / "trials", "--far", 1], "FAR: of 1"),
    ):
        ran = speakerkit("calibrate", "-m", copy, *arguments)
        assert ran.code == 2, arguments
        assert message in ran.errors[0]
    assert read_bundle(copy).threshold() == (0.1, "old")


def test_embeddings_of_another_model_are_refused(copy: Path, lists: Path) -> None:
    assert speakerkit("embed", "-m", copy, "--scp", lists / "wav.scp", "--out", lists / "e.npz").code == 0
    arguments = ["calibrate", "-m", copy, "--embeddings", lists / "e.npz", "--trials", lists / "trials"]
    note = lists / "e.model.json"
    for text, message in (
        (json.dumps({**json.loads(note.read_text()), "sha256": "0" * 64}), "another model"),
        ("{}", "does not tell"),
    ):
        note.write_text(text)
        ran = speakerkit(*arguments)
        assert ran.code == 2
        assert message in ran.errors[0]


def test_score_fit_and_llr(tmp_path: Path) -> None:
    columns, labels = gaussians(400, systems=2)
    for number in range(2):
        write_scores(tmp_path / f"{number}.score", listed(columns[:, number], labels))
    files = [tmp_path / "0.score", tmp_path / "1.score"]
    assert speakerkit("score", "fit", tmp_path / "map.json", *files).code == 0
    assert speakerkit("score", "llr", tmp_path / "map.json", tmp_path / "fused", *files).code == 0
    fused = read_scores(tmp_path / "fused")
    expected = fit_linear(columns, labels, ("0", "1"))(columns)
    np.testing.assert_array_equal(fused.scores, expected)
    ran = speakerkit("score", "llr", tmp_path / "map.json", tmp_path / "fused", files[0])
    assert ran.code == 2
    assert "was learnt from 2 systems" in ran.errors[0]
    no_text = files[0].rename(tmp_path / os.fsdecode(b"\xff.score"))
    assert speakerkit("score", "fit", tmp_path / "map.json", no_text).code == 0
    assert read_map(tmp_path / "map.json").columns == (r"\udcff",)
    no_text.rename(files[0])
    assert speakerkit("score", "fit", tmp_path / "pav.json", files[0], "--method", "pav").code == 0
    assert speakerkit("score", "llr", tmp_path / "pav.json", tmp_path / "one", files[0]).code == 0
    assert cllr(read_scores(tmp_path / "one").scores, labels) < 0.6
    assert speakerkit("score", "fit", tmp_path / "pav.json", *files, "--method", "pav").code == 2
    assert speakerkit("score", "fit", tmp_path / "pav.json", *files, "--method", "platt").code == 2
