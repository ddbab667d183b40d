"""Error rates and costs against scikit-learn, closed forms and plain counting."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_curve
from typer.testing import CliRunner

from speakerkit.cli.metrics import metrics
from speakerkit.errors import ConfigError, DataError
from speakerkit.verification.metrics import (
    _pooled_ends,
    act_dcf,
    cllr,
    eer,
    error_curve,
    evaluate,
    min_cllr,
    min_dcf,
)
from speakerkit.verification.trials import Scores, Trials, write_scores

# Few distinct values, so that ties are the rule; both kinds of trial are always there.
TRIALS = st.tuples(
    st.lists(st.integers(-4, 4), min_size=1, max_size=25), st.lists(st.integers(-4, 4), min_size=1, max_size=25)
)


def joined(targets: object, nontargets: object) -> tuple[np.ndarray, np.ndarray]:
    scores = np.concatenate([np.asarray(targets, float), np.asarray(nontargets, float)])
    return scores, np.arange(len(scores)) < len(np.asarray(targets))


def scored(scores: np.ndarray, labels: np.ndarray | None) -> Scores:
    count = len(scores)
    return Scores(
        Trials.from_pairs([f"e{n % 3}" for n in range(count)], [f"t{n}" for n in range(count)], labels), scores
    )


def sklearn_eer(scores: np.ndarray, labels: np.ndarray) -> float:
    false_accepts, accepts, _ = roc_curve(labels, scores, drop_intermediate=False)
    misses = 1 - accepts
    after = int(np.argmax(misses - false_accepts <= 0))
    position = brentq(
        interp1d([0, 1], (misses - false_accepts)[after - 1 : after + 1]), 0, 1, xtol=1e-15, rtol=1e-14, maxiter=500
    )
    return float(interp1d([0, 1], misses[after - 1 : after + 1])(position))


def counted_costs(scores: np.ndarray, labels: np.ndarray, p_target: float, c_miss: float, c_fa: float) -> float:
    targets, nontargets = scores[labels], scores[~labels]
    costs = []
    for threshold in [*scores, np.inf]:
        miss = c_miss * p_target * np.mean(targets < threshold)
        costs.append(miss + c_fa * (1 - p_target) * np.mean(nontargets >= threshold))
    return min(costs) / min(c_miss * p_target, c_fa * (1 - p_target))


@given(TRIALS)
@settings(max_examples=150)
def test_eer_equals_scikit_learn(trials: tuple[list[int], list[int]]) -> None:
    scores, labels = joined(*trials)
    assert eer(scores, labels).value == pytest.approx(sklearn_eer(scores, labels), abs=1e-9)


@pytest.mark.parametrize("decimals", [1, 2, 15])
def test_eer_equals_scikit_learn_on_many(decimals: int) -> None:
    rng = np.random.default_rng(0)
    scores, labels = joined(rng.normal(2, 1, 700).round(decimals), rng.normal(0, 1.5, 3000).round(decimals))
    assert eer(scores, labels).value == pytest.approx(sklearn_eer(scores, labels), abs=1e-12)


@pytest.mark.parametrize("distance", [-60, -1, 0, 2, 60])  # 60: on two sides, without overlap
@pytest.mark.parametrize("sizes", [(1, 1), (1, 500), (500, 1), (3, 2), (200, 3000)])
@pytest.mark.parametrize("decimals", [0, 15])
def test_eer_and_min_dcf_equal_scikit_learn(distance: float, sizes: tuple[int, int], decimals: int) -> None:
    rng = np.random.default_rng(0)
    targets, nontargets = rng.normal(distance, 1, sizes[0]), rng.normal(0, 1.5, sizes[1])
    scores, labels = joined(targets.round(decimals), nontargets.round(decimals))
    order = rng.permutation(len(scores))
    scores, labels = scores[order], labels[order]
    assert eer(scores, labels).value == pytest.approx(sklearn_eer(scores, labels), abs=1e-9)
    false_accepts, accepts, _ = roc_curve(labels, scores, drop_intermediate=False)
    for p_target in (0.01, 0.05, 0.5):
        costs = p_target * (1 - accepts) + (1 - p_target) * false_accepts
        expected = costs.min() / min(p_target, 1 - p_target)
        assert min_dcf(scores, labels, p_target) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("distance", [0.5, 1.0, 2.0, 4.0])
def test_eer_of_two_gaussians(distance: float) -> None:
    """At evenly spaced quantiles the counts follow the closed form: EER = Phi(-d'/2), threshold d'/2."""
    grid = norm.ppf((np.arange(200_000) + 0.5) / 200_000)
    result = eer(*joined(grid[::4] + distance, grid))
    assert result.value == pytest.approx(norm.cdf(-distance / 2), abs=2e-5)
    assert result.threshold == pytest.approx(distance / 2, abs=1e-3)


@pytest.mark.parametrize("p_target", [0.01, 0.05, 0.5])
def test_min_dcf_of_two_gaussians(p_target: float) -> None:
    """The best threshold is where the likelihood ratio equals the prior odds: d/2 + log((1 - p) / p) / d."""
    distance = 3.0
    grid = norm.ppf((np.arange(200_000) + 0.5) / 200_000)
    best = distance / 2 + np.log((1 - p_target) / p_target) / distance
    cost = p_target * norm.cdf(best - distance) + (1 - p_target) * norm.sf(best)
    assert min_dcf(*joined(grid + distance, grid), p_target) == pytest.approx(
        cost / min(p_target, 1 - p_target), abs=1e-3
    )


@given(TRIALS, st.sampled_from([(0.01, 1, 1), (0.05, 1, 1), (0.5, 1, 1), (0.9, 2, 3), (0.01, 10, 1)]))
@settings(max_examples=150)
def test_min_dcf_equals_counting(trials: tuple[list[int], list[int]], costs: tuple[float, float, float]) -> None:
    scores, labels = joined(*trials)
    value = min_dcf(scores, labels, *costs)
    assert value == pytest.approx(counted_costs(scores, labels, *costs), abs=1e-12)
    assert 0 <= value <= 1


@given(TRIALS, st.randoms(use_true_random=False))
def test_order_does_not_matter(trials: tuple[list[int], list[int]], random: object) -> None:
    scores, labels = joined(*trials)
    order = list(range(len(scores)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert evaluate(scored(scores[order], labels[order])) == evaluate(scored(scores, labels))


@given(TRIALS)
def test_rising_maps_change_nothing_and_falling_ones_mirror(trials: tuple[list[int], list[int]]) -> None:
    scores, labels = joined(*trials)
    value = eer(scores, labels).value
    assert eer(np.exp(scores), labels).value == value
    assert min_dcf(np.exp(scores), labels) == min_dcf(scores, labels)
    assert eer(-scores, ~labels).value == pytest.approx(value, abs=1e-12)
    assert eer(-scores, labels).value == pytest.approx(1 - value, abs=1e-12)


@given(TRIALS)
def test_the_threshold_stands_at_the_crossing(trials: tuple[list[int], list[int]]) -> None:
    scores, labels = joined(*trials)
    result = eer(scores, labels)
    targets, nontargets = scores[labels], scores[~labels]
    assert np.mean(targets < result.threshold) <= result.value + 1e-12
    assert np.mean(nontargets > result.threshold) <= result.value + 1e-12
    assert np.mean(targets <= result.threshold) >= result.value - 1e-12
    assert np.mean(nontargets >= result.threshold) >= result.value - 1e-12


@pytest.mark.parametrize("sizes", [(1, 1), (1, 1000), (7, 3), (1000, 999)])
def test_a_constant_scorer_has_one_half(sizes: tuple[int, int]) -> None:
    result = evaluate(scored(*joined(np.full(sizes[0], 0.3), np.full(sizes[1], 0.3))))
    assert result.eer == 0.5
    assert result.eer_threshold == 0.3
    assert result.min_dcf_001 == result.min_dcf_005 == 1


def test_perfect_and_reversed_scorers() -> None:
    assert eer(*joined([2, 3], [0, 1])) == eer(*joined([3, 2], [1, 0]))
    assert eer(*joined([2, 3], [0, 1])).value == 0
    assert eer(*joined([2, 3], [0, 1])).threshold == 1.5
    assert eer(*joined([0], [1])).value == 1
    assert min_dcf(*joined([2, 3], [0, 1])) == 0
    close = np.nextafter(1.0, 2.0)
    assert eer(*joined([close], [1.0])).threshold == close


def test_hand_counted_example() -> None:
    # Rejecting 0.1 0.2 | 0.3 (one of each) | 0.4 0.5: misses 0, then 1/2; false accepts 1/3, then 0.
    scores, labels = joined([0.3, 0.5], [0.1, 0.2, 0.3])
    assert eer(scores, labels).value == pytest.approx(0.2)
    assert eer(scores, labels).threshold == 0.3
    assert min_dcf(scores, labels, 0.5) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        ([0.1, 0.2], [True, True]),
        ([0.1, 0.2], [False, False]),
        ([0.1, np.nan], [True, False]),
        ([0.1, np.inf], [True, False]),
        ([0.1, -1.7e308], [True, False]),
        ([], []),
        ([0.1, 0.2], [True]),
    ],
)
def test_hopeless_input_is_an_error(scores: list[float], labels: list[bool]) -> None:
    for metric in (eer, min_dcf, act_dcf, cllr, min_cllr):
        with pytest.raises(DataError) as error:
            metric(np.array(scores), np.array(labels, dtype=bool))
        assert error.value.remedy


def test_unlabelled_trials_are_an_error() -> None:
    with pytest.raises(DataError, match="no labels"):
        evaluate(scored(np.zeros(3), None))


@pytest.mark.parametrize("costs", [(0, 1, 1), (1, 1, 1), (0.5, 0, 1), (0.5, 1, -1), (np.nan, 1, 1), (1e-9, 1e-320, 1)])
def test_impossible_costs_are_an_error(costs: tuple[float, float, float]) -> None:
    for metric in (min_dcf, act_dcf):
        with pytest.raises(ConfigError):
            metric(*joined([1], [0]), *costs)


def test_table_and_json() -> None:
    result = evaluate(scored(*joined([2, 3, 0], [0, 1, 1, 1])))
    header, row = result.to_table("cosine").splitlines()
    assert header.split("  ")[0].strip() == "scores"
    assert row.split() == [
        "cosine",
        f"{100 * result.eer:.3f}",
        f"{result.min_dcf_001:.4f}",
        f"{result.min_dcf_005:.4f}",
        f"{result.min_cllr:.4f}",
        "7",
        "3",
    ]
    assert len(header) == len(row)
    assert json.loads(result.to_json())["eer"] == result.eer


def test_command(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(metrics)
    rng = np.random.default_rng(0)
    files = []
    for name in ("one", "two"):
        files.append(str(tmp_path / f"{name}.score"))
        write_scores(files[-1], scored(*joined(rng.normal(2, 1, 50), rng.normal(0, 1, 100))))
    picture = tmp_path / "det.png"
    result = CliRunner().invoke(
        app, [*files, "--det", str(picture), "--title-label", "demo corpus"], catch_exceptions=False
    )
    lines = result.stdout.splitlines()
    assert lines[0] == "demo corpus"
    assert [line.split()[0] for line in lines[2:]] == ["scores", "one", "two"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    result = CliRunner().invoke(app, [*files, "--json"], catch_exceptions=False)
    assert set(json.loads(result.stdout)["scores"]) == {"one", "two"}
    result = CliRunner().invoke(app, [files[0], files[0]], catch_exceptions=False)
    assert result.exit_code == 0


def sklearn_min_cllr(scores: np.ndarray, labels: np.ndarray) -> float:
    """Probabilities by isotonic regression with targets and nontargets of equal weight, then their cost."""
    weights = np.where(labels, 1 / labels.sum(), 1 / (~labels).sum())
    found = IsotonicRegression().fit(scores, labels.astype(float), weights).predict(scores)
    with np.errstate(divide="ignore"):
        costs = -np.log2(np.where(labels, found, 1 - found))
    return float(np.sum(weights * costs) / 2)


@given(TRIALS)
@settings(max_examples=150)
def test_min_cllr_equals_isotonic_regression(trials: tuple[list[int], list[int]]) -> None:
    scores, labels = joined(*trials)
    value = min_cllr(scores, labels)
    assert value == pytest.approx(sklearn_min_cllr(scores, labels), abs=1e-9)
    assert 0 <= value <= 1
    assert min_cllr(np.exp(scores), labels) == value
    assert min_cllr(scores[::-1], labels[::-1]) == value


@pytest.mark.parametrize("decimals", [1, 2, 15])
def test_min_cllr_equals_isotonic_regression_on_many(decimals: int) -> None:
    rng = np.random.default_rng(0)
    scores, labels = joined(rng.normal(2, 1, 700).round(decimals), rng.normal(0, 1.5, 3000).round(decimals))
    assert min_cllr(scores, labels) == pytest.approx(sklearn_min_cllr(scores, labels), abs=1e-9)


def test_a_cascade_of_merges_is_pooled_in_one_pass() -> None:
    """Shares that rise slowly and then fall: each merge makes the next one necessary, one at a time."""
    targets = np.arange(1, 3001)
    nontargets = np.append(np.full(2999, 3000), 10**6)
    ends = _pooled_ends(targets, nontargets)
    shares = targets / (targets + nontargets)
    found = IsotonicRegression().fit(np.arange(3000), shares, targets + nontargets).predict(np.arange(3000))
    np.testing.assert_array_equal(ends, np.append(np.flatnonzero(np.diff(found) > 1e-15), 2999))
    assert 10 < len(ends) < 2990


@given(TRIALS, st.floats(0.01, 0.99))
def test_the_convex_hull_keeps_every_least_cost(trials: tuple[list[int], list[int]], p_target: float) -> None:
    curve = error_curve(*joined(*trials))
    hull = curve.convex_hull()
    assert hull.min_dcf(p_target) == pytest.approx(curve.min_dcf(p_target), abs=1e-12)
    slopes = np.diff(hull.misses) * -1.0 / np.minimum(np.diff(hull.false_accepts), -1e-9)
    assert (np.diff(slopes) > 0).all()
    assert hull.eer().value <= curve.eer().value + 1e-12


@given(TRIALS, st.sampled_from([(0.01, 1, 1), (0.5, 1, 1), (0.9, 2, 3), (0.119202922, 1, 1)]))
def test_act_dcf_equals_counting(trials: tuple[list[int], list[int]], costs: tuple[float, float, float]) -> None:
    scores, labels = joined(*trials)
    p_target, c_miss, c_fa = costs
    threshold = np.log(c_fa * (1 - p_target) / (c_miss * p_target))
    miss, accept = c_miss * p_target, c_fa * (1 - p_target)
    cost = miss * np.mean(scores[labels] < threshold) + accept * np.mean(scores[~labels] >= threshold)
    assert act_dcf(scores, labels, *costs) == pytest.approx(cost / min(miss, accept), abs=1e-12)
    assert act_dcf(scores, labels, *costs) >= min_dcf(scores, labels, *costs)


@given(TRIALS)
def test_cllr_equals_its_definition(trials: tuple[list[int], list[int]]) -> None:
    scores, labels = joined(*trials)
    targets, nontargets = scores[labels], scores[~labels]
    expected = (np.mean(np.log2(1 + np.exp(-targets))) + np.mean(np.log2(1 + np.exp(nontargets)))) / 2
    assert cllr(scores, labels) == pytest.approx(expected, abs=1e-12)
    assert cllr(scores, labels) >= min_cllr(scores, labels) - 1e-12
    assert cllr(scores[::-1], labels[::-1]) == cllr(scores, labels)


def test_cllr_of_extreme_ratios() -> None:
    assert cllr(*joined([0, 0], [0])) == 1
    assert cllr(*joined([1e99], [-1e99])) == 0
    assert cllr(*joined([-1000], [-1e99])) == pytest.approx(500 / np.log(2))


@pytest.mark.parametrize("distance", [0.5, 2.0, 4.0])
def test_costs_of_calibrated_gaussians(distance: float) -> None:
    """LLRs of N(d, 1) against N(0, 1) are N(±d²/2, d²); Cllr is an integral, actDCF is at its least."""
    grid = norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    scores, labels = joined(distance * (grid + distance) - distance**2 / 2, distance * grid - distance**2 / 2)
    integral, _ = quad(
        lambda x: np.logaddexp(0, -x) / np.log(2) * norm.pdf(x, distance**2 / 2, distance), -np.inf, np.inf
    )
    assert cllr(scores, labels) == pytest.approx(integral, abs=1e-4)
    assert min_cllr(scores, labels) == pytest.approx(integral, abs=1e-3)
    for p_target in (0.01, 0.5):
        assert act_dcf(scores, labels, p_target) == pytest.approx(min_dcf(scores, labels, p_target), abs=1e-3)


@given(TRIALS, st.sampled_from([0.0, 0.04, 0.1, 0.29, 0.5, 0.99]))
@settings(max_examples=150)
def test_asked_rates_are_kept_as_well_as_can_be(trials: tuple[list[int], list[int]], rate: float) -> None:
    scores, labels = joined(*trials)
    curve = error_curve(scores, labels)
    targets, nontargets = scores[labels], scores[~labels]
    accepting, rejecting = curve.at_far(rate), curve.at_frr(rate)
    for point in (accepting, rejecting):
        assert point.false_accepts == np.sum(nontargets >= point.threshold)
        assert point.misses == np.sum(targets < point.threshold)
        assert (point.far, point.frr) == (point.false_accepts / len(nontargets), point.misses / len(targets))
    thresholds = [*np.unique(scores), np.inf]
    assert accepting.misses == min(
        np.sum(targets < threshold) for threshold in thresholds if np.mean(nontargets >= threshold) <= rate
    )
    assert rejecting.false_accepts == min(
        np.sum(nontargets >= threshold) for threshold in thresholds if np.mean(targets < threshold) <= rate
    )


def test_rates_that_floats_cannot_hold_are_met_exactly() -> None:
    """29 of 100 is 0.29, though 0.29 * 100 is less than 29."""
    curve = error_curve(*joined([200], np.arange(100)))
    assert curve.at_far(0.29).false_accepts == 29
    for rate in (-0.1, 1.0, np.nan):
        with pytest.raises(ConfigError):
            curve.at_far(rate)


def test_costs_of_ratios_are_shown_where_asked(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(metrics)
    rng = np.random.default_rng(0)
    path = tmp_path / "llr.score"
    scores = scored(*joined(rng.normal(2, 2, 50), rng.normal(-2, 2, 100)))
    write_scores(path, scores)
    plain = CliRunner().invoke(app, [str(path)], catch_exceptions=False).stdout
    assert "actDCF" not in plain
    assert " Cllr" not in plain
    pictures = [tmp_path / f"{name}.svg" for name in ("roc", "histogram", "reliability")]
    options = [word for path in pictures for word in (f"--{path.stem}", str(path))]
    shown = CliRunner().invoke(app, [str(path), "--llr", *options], catch_exceptions=False).stdout.splitlines()
    assert {"actDCF 0.01", "actDCF 0.05", "minCllr", "Cllr"} <= set(re.split(r"  +", shown[0]))
    assert f"{evaluate(scores, llr=True).cllr:.4f}" in shown[1]
    assert all(picture.read_bytes().startswith(b"<?xml") for picture in pictures)
    report = json.loads(CliRunner().invoke(app, [str(path), "--llr", "--json"], catch_exceptions=False).stdout)
    assert report["scores"]["llr"]["act_dcf_001"] == evaluate(scores, llr=True).act_dcf_001
    for wrong in ([str(path), "--reliability", "x.png"], [str(path), str(path), "--histogram", "x.png"]):
        assert CliRunner().invoke(app, wrong).exit_code == 2
