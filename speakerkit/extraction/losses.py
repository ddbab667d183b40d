"""What extraction and separation are trained by: SI-SDR and SDR in dB, loss by scenario, magnitudes, and PIT.

Every value and gradient is finite, for targets and estimates of zeros too. Halves are reckoned in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Measure = Callable[[Tensor, Tensor], Tensor]

EPS = 1e-8  # of energies, whose unit is a sample of full scale squared
POWER_EPS = 1e-6  # of power a second: -60 dB is the floor of quiet (USED, eq. 7)
SCALE_WEIGHTS = (0.8, 0.1, 0.1)  # of the decoders with short, middle and long filters (SpEx+)
MAGNITUDE_EPS = 1e-5  # bounds the slope of a power below 1 at zero
MOST_ENUMERATED = 3  # sources whose orders are tried one by one


def si_sdr(estimate: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB, of zero-mean signals; its negative is the loss.

    An estimate of zeros has 0 dB and no gradient; a target of zeros gives the less the more energy the estimate has.

    Args:
        estimate: (..., S).
        target: (..., S), or what broadcasts with the estimate.
        mask: (..., S) 1 at the samples that count; all do without one.

    Returns:
        (...) dB.

    Le Roux et al., "SDR - half-baked or well done?" (2019), eq. 3; the residual is summed as such, since the
    expansion of its square cancels in float32.
    """
    estimate, target = _centred(estimate, mask), _centred(target, mask)
    scale = (estimate * target).sum(-1, keepdim=True) / (_energy(target)[..., None] + EPS)
    wanted = scale * target
    return _decibels((_energy(wanted) + EPS) / (_energy(estimate - wanted) + EPS))


def sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Signal-to-distortion ratio in dB (...) of (..., S), which also asks for the target's level."""
    estimate, target = _precise(estimate), _precise(target)
    return _decibels((_energy(target) + EPS) / (_energy(estimate - target) + EPS))


def leakage(estimate: Tensor, mixture: Tensor, floor: float = 1e-3) -> Tensor:
    """What is left of a mixture whose target is silent, in dB (...) of (..., S): the loss where SI-SDR says nothing.

    It falls to ``10 log10(floor)``, beyond which less gains nothing (Wisdom et al., "What's all the fuss about free
    universal sound separation data?", 2021, eq. 4, there without the division by the mixture's energy).
    """
    return _decibels(_energy(_precise(estimate)) / (_energy(_precise(mixture)) + EPS) + floor)


@dataclass(frozen=True)
class ScenarioWeights:
    """Weight of each scenario: whether the target, then whether anybody else, is quiet or speaks (USED, eq. 9)."""

    quiet_quiet: float = 0.001
    quiet_speech: float = 0.001
    speech_speech: float = 1.0
    speech_quiet: float = 1.0


def scenario_loss(
    estimate: Tensor,
    target: Tensor,
    speaking: Tensor,
    interfering: Tensor,
    rate: int,
    weights: ScenarioWeights | None = None,
    shortest: float = 0.01,
) -> Tensor:
    """Scenario-aware differentiated loss (SAD): negative SI-SDR where the target speaks, the output's power where not.

    The samples of a scenario are taken together, wherever they lie; a scenario of less than ``shortest`` seconds
    counts as absent and adds nothing.

    Args:
        estimate: (..., S).
        target: (..., S).
        speaking: (..., S) 1 where the target speaks.
        interfering: (..., S) 1 where somebody else does.
        rate: Hz.
        weights: of the scenarios.
        shortest: seconds.

    Returns:
        (...) weighted sum over the scenarios.

    USED, eq. 7 to 9, with the usual SI-SDR in place of its eq. 8.
    """
    weights = weights or ScenarioWeights()
    estimate, target = _precise(estimate), _precise(target)
    own, other = speaking.to(estimate.dtype), interfering.to(estimate.dtype)

    def present(mask: Tensor, value: Tensor) -> Tensor:
        return torch.where(mask.sum(-1) >= shortest * rate, value, 0.0)

    def quiet(mask: Tensor) -> Tensor:
        seconds = mask.sum(-1).clamp(min=1.0) / rate
        return present(mask, _decibels(_energy(mask * estimate) / seconds + POWER_EPS))

    def speech(mask: Tensor) -> Tensor:
        return present(mask, -si_sdr(estimate, target, mask))

    return (
        weights.quiet_quiet * quiet((1 - own) * (1 - other))
        + weights.quiet_speech * quiet((1 - own) * other)
        + weights.speech_speech * speech(own * other)
        + weights.speech_quiet * speech(own * (1 - other))
    )


def multi_scale(
    measure: Measure, estimates: Sequence[Tensor], target: Tensor, weights: Sequence[float] = SCALE_WEIGHTS
) -> Tensor:
    """Weighted sum of a measure over estimates (..., S) of several decoders, which must be as many as the weights."""
    parts = [weight * measure(each, target) for each, weight in zip(estimates, weights, strict=True)]
    return torch.stack(parts).sum(0)


def magnitude_mse(estimate: Tensor, target: Tensor, power: float = 1.0) -> Tensor:
    """Mean squared error (...) of magnitudes (..., T, F), compressed by a power (VoiceFilter: 0.3; Atss-Net: 1)."""
    estimate, target = _precise(estimate), _precise(target)
    if power != 1.0:
        estimate, target = (estimate + MAGNITUDE_EPS) ** power, (target + MAGNITUDE_EPS) ** power
    return (estimate - target).square().mean((-2, -1))


def pairwise(measure: Measure, estimates: Tensor, targets: Tensor) -> Tensor:
    """(B, K, K) measure of each of K estimates (B, K, ...) with each of K targets (B, K, ...)."""
    return measure(estimates.unsqueeze(2), targets.unsqueeze(1))


def permutation_invariant(losses: Tensor) -> tuple[Tensor, Tensor]:
    """Least mean loss over all ways to give K estimates to K targets (PIT).

    Args:
        losses: (B, K, K) of each estimate (second axis) with each target (third), as :func:`pairwise` gives.

    Returns:
        (B,) loss, and (B, K) the estimate of each target.

    Yu et al., "Permutation invariant training of deep models" (2017). NaN stays NaN, for the trainer to see.
    """
    order = best_order(losses)
    return losses.gather(1, order[:, None, :])[:, 0].mean(-1), order


def best_order(losses: Tensor) -> Tensor:
    """(B, K) the estimate of each target by least sum of losses (B, K, K); above three sources the Hungarian method."""
    sources = losses.shape[-1]
    if sources <= MOST_ENUMERATED:
        orders = torch.tensor(list(permutations(range(sources))), device=losses.device)  # (K!, K)
        sums = losses.detach()[:, orders, torch.arange(sources, device=losses.device)].sum(-1)  # (B, K!)
        return orders[sums.argmin(-1)]
    costs = torch.nan_to_num(losses.detach().float()).cpu().numpy().swapaxes(1, 2)  # (B, targets, estimates)
    found = [linear_sum_assignment(matrix)[1].tolist() for matrix in costs]
    return torch.tensor(found, device=losses.device).reshape(losses.shape[:2])


def _precise(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _centred(values: Tensor, mask: Tensor | None) -> Tensor:
    """Less their mean; zero at the samples that do not count."""
    values = _precise(values)
    if mask is None:
        return values - values.mean(-1, keepdim=True)
    mask = mask.to(values.dtype)
    mean = (mask * values).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1.0)
    return mask * (values - mean)


def _energy(values: Tensor) -> Tensor:
    return values.square().sum(-1)


def _decibels(ratio: Tensor) -> Tensor:
    return 10 * torch.log10(ratio)
