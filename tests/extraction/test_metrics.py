"""Metrics: equal to mir_eval, torchmetrics and closed forms; what cannot be measured says so."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from speakerkit.errors import DataError, MissingExtraError
from speakerkit.extraction import metrics
from speakerkit.extraction.metrics import LIMIT
from tests.conftest import speech_like

RATE = 8000
RNG = np.random.default_rng(0)
TARGET = speech_like(1.5, RATE, seed=1)
OTHER = speech_like(1.5, RATE, seed=2)
ESTIMATES = {
    "mixture": TARGET + OTHER,
    "good": TARGET + 0.05 * OTHER + 0.01,
    "filtered": np.convolve(TARGET, [0.1, 0.8, 0.4, -0.2])[: len(TARGET)] + 0.02 * OTHER,
    "swapped": OTHER,
    "loud": 40 * TARGET + OTHER,
}


@pytest.mark.parametrize("name", ESTIMATES)
@pytest.mark.filterwarnings("ignore")
def test_sdr_is_that_of_bsseval(name: str) -> None:
    separation = pytest.importorskip("mir_eval.separation")
    estimate = ESTIMATES[name]
    # Two sources on their side: the SDR does not depend on the others.
    both = np.stack([TARGET, OTHER]).astype(float), np.stack([estimate, OTHER]).astype(float)
    theirs = separation.bss_eval_sources(*both, compute_permutation=False)[0][0]
    assert metrics.sdr(estimate, TARGET) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("name", ESTIMATES)
def test_si_sdr_is_that_of_torchmetrics(name: str) -> None:
    torch = pytest.importorskip("torch")
    audio = pytest.importorskip("torchmetrics.functional.audio")
    pair = (torch.tensor(each, dtype=torch.float64) for each in (ESTIMATES[name], TARGET))
    theirs = audio.scale_invariant_signal_distortion_ratio(*pair, zero_mean=True).item()
    assert metrics.si_sdr(ESTIMATES[name], TARGET) == pytest.approx(theirs, abs=1e-4)


def test_closed_forms() -> None:
    wave = np.sin(2 * np.pi * 10 * np.arange(RATE) / RATE)
    across = np.cos(2 * np.pi * 10 * np.arange(RATE) / RATE)
    assert metrics.si_sdr(3 * wave + 0.3 * across + 7, wave) == pytest.approx(20.0, abs=1e-9)
    assert metrics.si_sdr(wave, wave) == metrics.sdr(wave, wave) == LIMIT
    assert metrics.si_sdr(across, wave) == -LIMIT
    assert metrics.leakage(0.1 * wave, wave) == pytest.approx(-20.0)
    assert metrics.leakage(0 * wave, wave) == -LIMIT
    assert metrics.power(wave, RATE) == pytest.approx(10 * np.log10(RATE / 2))
    assert metrics.power(0 * wave, RATE) == pytest.approx(-80.0)
    assert metrics.power(wave[: RATE // 2], RATE) == pytest.approx(metrics.power(wave, RATE))


def test_level_of_the_mixture_is_found_whatever_the_scale() -> None:
    mixture = TARGET + OTHER
    estimate = TARGET + 0.1 * OTHER
    exact = metrics.levelled(estimate, mixture)
    for scale in (1e-3, 20.0, -5.0):
        assert np.allclose(metrics.levelled(scale * estimate, mixture), exact)
    nearest = np.sum((exact - mixture) ** 2)
    assert all(np.sum((gain * exact - mixture) ** 2) > nearest for gain in (0.99, 1.01))
    assert not metrics.levelled(0 * estimate, mixture).any()


def test_known_values_of_the_perceptual_ones() -> None:
    pytest.importorskip("pystoi")
    pytest.importorskip("pesq")
    # P.862.1 maps the best raw value, 4.5, to 4.549; P.862.2 to 4.644.
    assert metrics.pesq(TARGET, TARGET, 8000) == pytest.approx(4.549, abs=1e-3)
    assert metrics.pesq(speech_like(1.0), speech_like(1.0), 16000) == pytest.approx(4.644, abs=1e-3)
    for extended in (False, True):
        assert metrics.stoi(TARGET, TARGET, RATE, extended) == pytest.approx(1.0, abs=1e-6)
        assert metrics.stoi(5 * TARGET, TARGET, RATE, extended) == pytest.approx(1.0, abs=1e-6)
        worse = [metrics.stoi(TARGET + scale * OTHER, TARGET, RATE, extended) for scale in (0.1, 1, 10)]
        assert worse == sorted(worse, reverse=True)
    assert metrics.pesq(TARGET + OTHER, TARGET, RATE) < metrics.pesq(TARGET + 0.01 * OTHER, TARGET, RATE) < 4.549


MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "si_sdr": metrics.si_sdr,
    "sdr": metrics.sdr,
    "stoi": lambda estimate, target: metrics.stoi(estimate, target, RATE),
    "pesq": lambda estimate, target: metrics.pesq(estimate, target, RATE),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", MEASURES)
def test_silence_has_no_value(name: str) -> None:
    if name in ("stoi", "pesq"):
        pytest.importorskip("pystoi" if name == "stoi" else "pesq")
    with pytest.raises(DataError, match="estimate: is silent"):
        MEASURES[name](np.zeros_like(TARGET), TARGET)
    with pytest.raises(DataError, match="target: is silent"):
        MEASURES[name](TARGET, np.zeros_like(TARGET))
    with pytest.raises(DataError):
        MEASURES[name](TARGET[:0], TARGET[:0])
    short = TARGET[:500], OTHER[:500]
    if name in ("si_sdr", "sdr"):
        assert np.isfinite(MEASURES[name](*short))
    else:
        with pytest.raises(DataError, match=r"little speech|1/4 of a second"):
            MEASURES[name](*short)


def test_pesq_knows_two_rates() -> None:
    pytest.importorskip("pesq")
    with pytest.raises(DataError, match="44100 Hz"):
        metrics.pesq(TARGET, TARGET, 44100)


@pytest.mark.parametrize(("name", "measure"), [("pystoi", metrics.stoi), ("pesq", metrics.pesq)])
def test_missing_packages_are_named(name: str, measure: Callable[..., float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(MissingExtraError, match=r"speakerkit\[eval\]"):
        measure(TARGET, TARGET, RATE)


def test_scenarios_part_the_samples() -> None:
    turns = [(0.0, 0.5, "a"), (0.25, 0.75, "b"), (0.6, 9.0, "a")]
    spoken = metrics.activity(turns, 1000, 1000)
    assert {name: int(mask.sum()) for name, mask in spoken.items()} == {"a": 900, "b": 500}
    masks = metrics.scenarios(spoken["b"], spoken["a"])
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"QQ": 0, "QS": 500, "SS": 400, "SQ": 100}
    assert (sum(mask.astype(int) for mask in masks.values()) == 1).all()
