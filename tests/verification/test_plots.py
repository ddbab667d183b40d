"""DET plots: drawn for any scores that have error rates, the same bytes each time."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from speakerkit.errors import DataError, MissingExtraError
from speakerkit.verification.metrics import error_curve
from speakerkit.verification.plots import _path, plot_det
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
