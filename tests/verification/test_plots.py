"""Plots: drawn for any scores that have error rates, the same bytes each time, and they show what is so."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from speakerkit.errors import ConfigError, DataError, MissingExtraError
from speakerkit.verification.metrics import error_curve
from speakerkit.verification.plots import (
    _path,
    area_under,
    plot_det,
    plot_histogram,
    plot_reliability,
    plot_roc,
    reliability,
)
from speakerkit.verification.trials import Scores, Trials


def make(distance: float, targets: int, nontargets: int) -> Scores:
    rng = np.random.default_rng(0)
    count = targets + nontargets
    scores = np.concatenate([rng.normal(distance, 1, targets), rng.normal(0, 1, nontargets)])
    labels = np.arange(count) < targets
    return Scores(Trials.from_pairs(["e"] * count, [f"t{n}" for n in range(count)], labels), scores)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".PNG"])
def test_same_scores_same_bytes(tmp_path: Path, suffix: str) -> None:
    scores = {"_cosine $x$ & é": make(3, 100, 1000), "as-norm": make(4, 100, 1000)}
    for name in ("a", "b"):
        plot_det(scores, tmp_path / f"{name}{suffix}", "demo corpus")
    content = (tmp_path / f"a{suffix}").read_bytes()
    assert content == (tmp_path / f"b{suffix}").read_bytes()
    assert content[:5] in (b"\x89PNG\r", b"<?xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a{suffix}", f"b{suffix}"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("distance", [-100, 0, 1, 100])
@pytest.mark.parametrize("sizes", [(1, 1), (1, 30), (30, 1), (300, 20_000)])
def test_any_scores_are_drawn(tmp_path: Path, distance: float, sizes: tuple[int, int]) -> None:
    scores = make(distance, *sizes)
    constant = Scores(scores.trials, np.zeros(len(scores)))
    plot_det({"system": scores, "constant": constant}, tmp_path / "det.png")
    plot_det({"system": scores}, tmp_path / "det.png")
    width, height = np.frombuffer((tmp_path / "det.png").read_bytes()[16:24], ">u4")
    assert width == height == 960


def test_gaussian_scores_give_a_straight_line() -> None:
    grid = norm.ppf((np.arange(50_000) + 0.5) / 50_000)
    curve = error_curve(np.concatenate([grid + 2, grid]), np.arange(100_000) < 50_000)
    across, up = _path(curve, -3.0)
    inside = (np.abs(across) < 2.5) & (np.abs(up) < 2.5)
    np.testing.assert_allclose(across[inside] + up[inside], -2, atol=0.01)
    assert inside.sum() > 500
    assert len(across) < 20_000


def test_the_picture_of_many_trials_stays_small(tmp_path: Path) -> None:
    plot_det({"cosine": make(3, 20_000, 200_000)}, tmp_path / "det.svg")
    assert (tmp_path / "det.svg").stat().st_size < 300_000


def test_bad_requests_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"\.png"):
        plot_det({"a": make(1, 5, 5)}, tmp_path / "det.pdf")
    with pytest.raises(DataError, match="no scores"):
        plot_det({}, tmp_path / "det.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"speakerkit\[train\]"):
        plot_det({"a": make(1, 5, 5)}, tmp_path / "det.png")
    assert list(tmp_path.iterdir()) == []


def ratios(distance: float, targets: int, nontargets: int) -> Scores:
    """Calibrated: LLR of N(d, 1) against N(0, 1) is d x - d²/2."""
    scores = make(distance, targets, nontargets)
    return Scores(scores.trials, distance * scores.scores - distance**2 / 2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("distance", [-100, 0, 1, 100])
@pytest.mark.parametrize("sizes", [(1, 1), (1, 30), (300, 20_000)])
def test_the_other_plots_draw_any_scores(tmp_path: Path, distance: float, sizes: tuple[int, int]) -> None:
    scores = make(distance, *sizes)
    constant = Scores(scores.trials, np.full(len(scores), 7.0))
    for name, plot in (("roc", plot_roc), ("reliability", plot_reliability)):
        plot({"system": scores, "constant": constant}, tmp_path / f"{name}.png")
    plot_histogram(scores, tmp_path / "histogram.png")
    plot_histogram(constant, tmp_path / "constant.png", threshold=7.0)
    plot_histogram(Scores(scores.trials, np.full(len(scores), 9e99)), tmp_path / "constant.png")
    assert len(list(tmp_path.iterdir())) == 4


def test_the_other_plots_give_the_same_bytes(tmp_path: Path) -> None:
    scores = ratios(2, 100, 1000)
    for suffix in (".png", ".svg"):
        for name in ("a", "b"):
            plot_roc({"x": scores}, tmp_path / f"roc-{name}{suffix}")
            plot_reliability({"x": scores}, tmp_path / f"reliability-{name}{suffix}")
            plot_histogram(scores, tmp_path / f"histogram-{name}{suffix}", "demo corpus")
        for kind in ("roc", "reliability", "histogram"):
            first, second = ((tmp_path / f"{kind}-{name}{suffix}").read_bytes() for name in ("a", "b"))
            assert first == second


def test_the_area_under_the_curve_is_scikit_learns(tmp_path: Path) -> None:
    scores = make(1, 200, 1000)
    rounded = Scores(scores.trials, scores.scores.round(1))
    plot_roc({"x": rounded}, tmp_path / "roc.svg")
    area = roc_auc_score(rounded.trials.labels, rounded.scores)
    curve = error_curve(rounded.scores, rounded.trials.labels)
    assert area_under(curve) == pytest.approx(area, abs=1e-12)


@pytest.mark.parametrize("p_target", [0.1, 0.5])
def test_calibrated_ratios_lie_on_the_diagonal(p_target: float) -> None:
    scores = ratios(2, 50_000, 200_000)
    promised, found = reliability(error_curve(scores.scores, scores.trials.labels), p_target, 10)
    assert len(promised) == 10
    np.testing.assert_allclose(found, promised, atol=0.02)
    overconfident = error_curve(3 * scores.scores, scores.trials.labels)
    promised, found = reliability(overconfident, p_target, 10)
    assert np.abs(found - promised).max() > 0.1


def test_groups_keep_ties_together_and_lose_no_trial() -> None:
    curve = error_curve([0, 0, 0, 0, 1, 2], [False, True, False, True, True, True])
    promised, found = reliability(curve, 0.5, 3)
    # Prior weights: each target 1/8, each nontarget 1/4. At score 0: 2 targets, 2 nontargets.
    np.testing.assert_allclose(found, [(2 / 8) / (2 / 8 + 2 / 4), 1])
    np.testing.assert_allclose(promised[0], 0.5)
    with pytest.raises(ConfigError):
        reliability(curve, 0.0)
    with pytest.raises(ConfigError):
        reliability(curve, 0.5, 0)
