"""EER and minDCF against scikit-learn, closed forms and plain counting."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.metrics import roc_curve
from typer.testing import CliRunner

from speakerkit.cli.metrics import metrics
from speakerkit.errors import ConfigError, DataError
from speakerkit.verification.metrics import eer, evaluate, min_dcf
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
@settings(max_examples=150, deadline=None)
def test_eer_equals_scikit_learn(trials: tuple[list[int], list[int]]) -> None:
    scores, labels = joined(*trials)
    assert eer(scores, labels).value == pytest.approx(sklearn_eer(scores, labels), abs=1e-9)


@pytest.mark.parametrize("decimals", [1, 2, 15])
def test_eer_equals_scikit_learn_on_many(decimals: int) -> None:
    rng = np.random.default_rng(0)
    scores, labels = joined(rng.normal(2, 1, 700).round(decimals), rng.normal(0, 1.5, 3000).round(decimals))
    assert eer(scores, labels).value == pytest.approx(sklearn_eer(scores, labels), abs=1e-12)


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
@settings(max_examples=150, deadline=None)
def test_min_dcf_equals_counting(trials: tuple[list[int], list[int]], costs: tuple[float, float, float]) -> None:
    scores, labels = joined(*trials)
    value = min_dcf(scores, labels, *costs)
    assert value == pytest.approx(counted_costs(scores, labels, *costs), abs=1e-12)
    assert 0 <= value <= 1


@given(TRIALS, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_does_not_matter(trials: tuple[list[int], list[int]], random: object) -> None:
    scores, labels = joined(*trials)
    order = list(range(len(scores)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert evaluate(scored(scores[order], labels[order])) == evaluate(scored(scores, labels))


@given(TRIALS)
@settings(deadline=None)
def test_rising_maps_change_nothing_and_falling_ones_mirror(trials: tuple[list[int], list[int]]) -> None:
    scores, labels = joined(*trials)
    value = eer(scores, labels).value
    assert eer(np.exp(scores), labels).value == value
    assert min_dcf(np.exp(scores), labels) == min_dcf(scores, labels)
    assert eer(-scores, ~labels).value == pytest.approx(value, abs=1e-12)
    assert eer(-scores, labels).value == pytest.approx(1 - value, abs=1e-12)


@given(TRIALS)
@settings(deadline=None)
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
        ([], []),
        ([0.1, 0.2], [True]),
    ],
)
def test_hopeless_input_is_an_error(scores: list[float], labels: list[bool]) -> None:
    for metric in (eer, min_dcf):
        with pytest.raises(DataError) as error:
            metric(np.array(scores), np.array(labels, dtype=bool))
        assert error.value.remedy


def test_unlabelled_trials_are_an_error() -> None:
    with pytest.raises(DataError, match="no labels"):
        evaluate(scored(np.zeros(3), None))


@pytest.mark.parametrize("costs", [(0, 1, 1), (1, 1, 1), (0.5, 0, 1), (0.5, 1, -1), (np.nan, 1, 1)])
def test_impossible_costs_are_an_error(costs: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError):
        min_dcf(*joined([1], [0]), *costs)


def test_table_and_json() -> None:
    result = evaluate(scored(*joined([2, 3, 0], [0, 1, 1, 1])))
    header, row = result.to_table("cosine").splitlines()
    assert header.split("  ")[0].strip() == "scores"
    assert row.split() == [
        "cosine",
        f"{100 * result.eer:.3f}",
        f"{result.min_dcf_001:.4f}",
        f"{result.min_dcf_005:.4f}",
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
