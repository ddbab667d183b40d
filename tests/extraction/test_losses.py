"""Losses: equal to what loops over float64 samples give, finite with finite gradients on silence, in any precision."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from speakerkit.extraction.losses import (  # noqa: E402 - after the check for torch
    ScenarioWeights,
    best_order,
    leakage,
    magnitude_mse,
    multi_scale,
    pairwise,
    permutation_invariant,
    scenario_loss,
    sdr,
    si_sdr,
)

RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.normal(0, 0.1, shape)


def reference_si_sdr(estimate: np.ndarray, target: np.ndarray) -> float:
    estimate, target = estimate - estimate.mean(), target - target.mean()
    scale = np.dot(estimate, target) / np.dot(target, target)
    rest = estimate - scale * target
    return 10 * np.log10(scale**2 * np.dot(target, target) / np.dot(rest, rest))


def test_si_sdr_in_float64() -> None:
    target = noise(2, 3, 400) + 0.05
    estimate = 0.3 * target + noise(2, 3, 400) - 0.2
    found = si_sdr(torch.tensor(estimate), torch.tensor(target)).numpy()
    for row in np.ndindex(2, 3):
        assert found[row] == pytest.approx(reference_si_sdr(estimate[row], target[row]), abs=1e-5)


def test_sdr_and_leakage_of_known_ratios() -> None:
    target = torch.tensor(noise(2, 500))
    assert torch.allclose(sdr(0.9 * target, target), torch.tensor(20.0).double(), atol=1e-5)
    assert torch.allclose(si_sdr(0.9 * target, target) > 80, torch.tensor(True))
    assert leakage(0.1 * target, target, floor=0.0).tolist() == pytest.approx([-20.0, -20.0], abs=1e-5)
    assert leakage(0 * target, target).tolist() == pytest.approx([-30.0, -30.0], abs=1e-9)


def test_float32_resolves_a_good_estimate() -> None:
    """The expansion of the squared residual would be lost in rounding at 70 dB."""
    target = noise(1, 64000)
    estimate = target + 10 ** (-70 / 20) * noise(1, 64000)
    exact = reference_si_sdr(estimate[0], target[0])
    assert 65 < exact < 75
    single = si_sdr(torch.tensor(estimate).float(), torch.tensor(target).float())
    assert single.item() == pytest.approx(exact, abs=0.05)


def scenario_reference(
    estimate: np.ndarray, target: np.ndarray, own: np.ndarray, other: np.ndarray, rate: int, shortest: int
) -> float:
    """Sample by sample, gathered, as the paper says it."""
    total = 0.0
    for speaks, others, weight in ((0, 0, 0.2), (0, 1, 0.3), (1, 1, 1.0), (1, 0, 0.7)):
        rows = [n for n in range(len(own)) if own[n] == speaks and other[n] == others]
        if len(rows) < shortest:
            continue
        if speaks:
            total -= weight * reference_si_sdr(estimate[rows], target[rows])
        else:
            energy = sum(estimate[n] ** 2 for n in rows)
            total += weight * 10 * np.log10(energy / (len(rows) / rate) + 1e-6)
    return total


def test_scenario_loss_equals_gathered_samples() -> None:
    rate, shape = 1000, (2, 3, 600)
    target, own, other = noise(*shape), RNG.random(shape) < 0.6, RNG.random(shape) < 0.5
    own[0, 0] = False  # one who never speaks
    other[0, 1] = False
    own[1, 2], other[1, 2] = True, True
    own[1, 2, :9] = False  # 9 ms are too short
    estimate = target + 0.3 * noise(*shape)
    weights = ScenarioWeights(0.2, 0.3, 1.0, 0.7)
    tensors = [torch.tensor(each) for each in (estimate, target, own, other)]
    found = scenario_loss(*tensors, rate, weights)
    assert found.shape == (2, 3)
    for row in np.ndindex(2, 3):
        expected = scenario_reference(estimate[row], target[row], own[row], other[row], rate, 10)
        assert found[row].item() == pytest.approx(expected, abs=1e-4)
    single = scenario_loss(*[each.float() for each in tensors[:2]], *tensors[2:], rate, weights)
    assert torch.allclose(single.double(), found, atol=1e-3)


def test_scenario_weights_are_the_papers() -> None:
    signal, speaking = torch.tensor(noise(1, 1600)), torch.zeros(1, 1600)
    power = 10 * np.log10(signal.square().sum().item() / 0.1 + 1e-6)
    assert scenario_loss(signal, signal, speaking, speaking, 16000).item() == pytest.approx(0.001 * power)


MEASURES: dict[str, Callable[..., torch.Tensor]] = {
    "si_sdr": si_sdr,
    "sdr": sdr,
    "leakage": leakage,
    "scenario": lambda estimate, target: scenario_loss(
        estimate,
        target,
        (torch.arange(800) % 4 < 2).expand_as(estimate),
        (torch.arange(800) % 2 < 1).expand_as(estimate),
        8000,
    ),
    "magnitude": lambda estimate, target: magnitude_mse(estimate.abs()[..., None], target.abs()[..., None]),
    "compressed": lambda estimate, target: magnitude_mse(estimate.abs()[..., None], target.abs()[..., None], 0.3),
    "pit": lambda estimate, target: permutation_invariant(-pairwise(si_sdr, estimate, target))[0],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MEASURES)
def test_silence_is_finite_with_finite_gradients(name: str, dtype: torch.dtype) -> None:
    signal = torch.tensor(noise(2, 2, 800), dtype=dtype)
    silence = torch.zeros_like(signal)
    for estimate, target in ((silence, signal), (signal, silence), (silence, silence), (signal, signal)):
        learned = estimate.clone().requires_grad_()
        value = MEASURES[name](learned, target)
        value.float().sum().backward()
        assert value.isfinite().all()
        assert learned.grad is not None
        assert learned.grad.isfinite().all()


def test_estimates_get_better_by_the_gradient() -> None:
    """Towards the target where there is one, towards silence where there is none."""
    target = torch.tensor(noise(1, 800))
    for measure, goal in ((si_sdr, target), (si_sdr, torch.zeros_like(target)), (sdr, target)):
        estimate = (target + torch.tensor(noise(1, 800))).requires_grad_()
        before = measure(estimate, goal)
        before.sum().backward()
        step = 1e-3 * estimate.grad / estimate.grad.norm()
        assert measure(estimate.detach() + step, goal) > before


def test_multi_scale_weighs_the_decoders() -> None:
    target = torch.tensor(noise(3, 500))
    estimates = [target + scale * torch.tensor(noise(3, 500)) for scale in (0.1, 0.5, 1.0)]
    parts = [si_sdr(each, target) for each in estimates]
    assert torch.allclose(multi_scale(si_sdr, estimates, target), 0.8 * parts[0] + 0.1 * parts[1] + 0.1 * parts[2])
    with pytest.raises(ValueError, match="zip"):
        multi_scale(si_sdr, estimates[:2], target)


def test_magnitudes_against_their_formula() -> None:
    estimate, target = np.abs(noise(2, 5, 7)), np.abs(noise(2, 5, 7))
    tensors = torch.tensor(estimate), torch.tensor(target)
    assert np.allclose(magnitude_mse(*tensors), ((estimate - target) ** 2).mean((1, 2)))
    compressed = ((estimate**0.3 - target**0.3) ** 2).mean((1, 2))
    assert np.allclose(magnitude_mse(*tensors, 0.3), compressed, rtol=1e-2)


@pytest.mark.parametrize("sources", [1, 2, 3, 4, 6])
def test_pit_is_the_best_of_all_orders(sources: int) -> None:
    losses = RNG.normal(size=(20, sources, sources))
    found, order = permutation_invariant(torch.tensor(losses))
    for row in range(20):
        sums = {
            each: np.mean([losses[row, each[target], target] for target in range(sources)])
            for each in permutations(range(sources))
        }
        best = min(sums, key=sums.__getitem__)
        assert tuple(order[row].tolist()) == best
        assert found[row].item() == pytest.approx(sums[best])


@pytest.mark.parametrize("sources", [3, 5])
def test_pit_finds_how_estimates_were_shuffled(sources: int) -> None:
    targets = torch.tensor(noise(2, sources, 300))
    shuffle = torch.tensor(RNG.permutation(sources))
    estimates = (targets[:, shuffle] + 0.01).requires_grad_()
    losses = -pairwise(si_sdr, estimates, targets)
    assert losses.shape == (2, sources, sources)
    loss, order = permutation_invariant(losses)
    assert torch.equal(shuffle[order], torch.arange(sources).expand(2, -1))
    loss.sum().backward()
    assert estimates.grad is not None


@pytest.mark.parametrize("sources", [2, 4])
def test_nan_is_not_hidden(sources: int) -> None:
    losses = torch.zeros(1, sources, sources).fill_(torch.nan)
    assert permutation_invariant(losses)[0].isnan().all()
    assert sorted(best_order(losses)[0].tolist()) == list(range(sources))
