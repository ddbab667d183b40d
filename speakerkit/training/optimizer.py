"""The optimiser: learning rates by part of the model, layer-wise decay, and parts that are frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from speakerkit.errors import ConfigError
from speakerkit.registry import suggest
from speakerkit.training.config import OptimConfig


@dataclass(frozen=True)
class PartRates:
    """What the learning rate is multiplied by, by the name of a tensor or module.

    Attributes:
        factors: prefix to factor, as ``optim.lr_factors`` says.
        blocks: prefix to factor, as ``optim.layer_decay`` makes them.
    """

    factors: Mapping[str, float]
    blocks: Mapping[str, float]

    def of(self, name: str) -> float:
        """The factor of the longest prefix of each kind, multiplied; 0 says frozen."""
        return _of_longest_prefix(name, self.factors) * _of_longest_prefix(name, self.blocks)

    def freeze(self, model: nn.Module) -> None:
        """Take what is frozen out of the training for good.

        Raises:
            ConfigError: nothing would be left to train.
        """
        for name, parameter in model.named_parameters():
            if self.of(name) == 0:
                parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigError("optim.lr_factors", "freezes the whole model", "leave a part of it to train")

    def train_mode(self, model: nn.Module) -> None:
        """Training mode for all but frozen modules: their batch-norm statistics stay, and they drop nothing out."""
        model.train()
        for name, module in model.named_modules():
            if name and self.of(name) == 0:
                module.training = False

    def described(self, model: nn.Module) -> list[str]:
        """One line a factor: how many tensors and values it rules."""
        ruled: dict[float, list[int]] = {}
        for name, parameter in model.named_parameters():
            ruled.setdefault(self.of(name) if parameter.requires_grad else 0.0, []).append(parameter.numel())
        if set(ruled) == {1.0}:
            return []
        return [
            f"{f'learning rate x {factor:.4g}' if factor else 'frozen'}: {len(counts)} tensors, "
            f"{sum(counts) / 1e6:.3f} M values"
            for factor, counts in sorted(ruled.items(), reverse=True)
        ]


def part_rates(model: nn.Module, config: OptimConfig) -> PartRates:
    """The factors of a configuration for this model.

    Raises:
        ConfigError: a prefix that no tensor has, or a module without blocks.
    """
    tensors = list(model.state_dict(keep_vars=True))
    for prefix in config.lr_factors:
        if not any(_within(name, prefix) for name in tensors):
            raise _unknown("optim.lr_factors", prefix, model, tensors)
    return PartRates(config.lr_factors, _block_factors(model, config.layer_decay))


def build_optimizer(model: nn.Module, config: OptimConfig, rates: PartRates) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW over what is not frozen; each group has the ``lr_factor`` of its learning rate."""
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        factor, decayed = rates.of(name), config.decay_norms or parameter.ndim > 1
        empty = {"params": [], "lr_factor": factor, "weight_decay": config.weight_decay if decayed else 0.0}
        groups.setdefault((factor, decayed), empty)["params"].append(parameter)
    listed = list(groups.values())
    if config.name == "sgd":
        return torch.optim.SGD(listed, config.lr, config.momentum, nesterov=config.momentum > 0)
    adam = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return adam(listed, config.lr, config.betas)


def _within(name: str, prefix: str) -> bool:
    """Whether a name is the prefix or stands below it; ``layer1`` is not the beginning of ``layer10``."""
    return name == prefix or name.startswith(f"{prefix}.")


def _of_longest_prefix(name: str, factors: Mapping[str, float]) -> float:
    return factors[max(found, key=len)] if (found := [p for p in factors if _within(name, p)]) else 1.0


def _block_factors(model: nn.Module, decays: Mapping[str, float]) -> dict[str, float]:
    """For each module that decays: its last block 1, the one before it ``decay``, then ``decay ** 2`` and so on."""
    factors: dict[str, float] = {}
    for prefix, decay in decays.items():
        try:
            blocks = block_names(model.get_submodule(prefix), prefix)
        except AttributeError:
            raise _unknown("optim.layer_decay", prefix, model, []) from None
        if not blocks:
            raise ConfigError("optim.layer_decay", f"{prefix!r} has no blocks", "name a module that holds layers")
        for distance, block in enumerate(reversed(blocks)):
            factors[block] = decay**distance
        factors[prefix] = factors[blocks[0]]  # tensors of its own stand at the input
    return factors


def block_names(module: nn.Module, prefix: str) -> list[str]:
    """The blocks of a module from input to output: its children that have parameters, in the order of their definition.

    A child that is a sequence of named stages (CAM++'s ``xvector``) counts by its stages; one of numbered layers (a
    stage of a ResNet) is one block.
    """
    names: list[str] = []
    for name, child in module.named_children():
        stages = dict(child.named_children()) if isinstance(child, nn.Sequential) else {}
        named = bool(stages) and not any(stage.isdigit() for stage in stages)
        parts = {f"{name}.{stage}": part for stage, part in stages.items()} if named else {name: child}
        names += [f"{prefix}.{part}" for part, held in parts.items() if any(True for _ in held.parameters())]
    return names


def _unknown(key: str, prefix: str, model: nn.Module, tensors: list[str]) -> ConfigError:
    known = [*(name for name, _ in model.named_modules() if name), *tensors]
    if suggest(prefix, known).startswith("choose"):  # hundreds: the parts of parts are named where one is near
        known = [name for name in known if name.count(".") <= 1]
    return ConfigError(key, f"{prefix!r} is the beginning of no tensor's name", suggest(prefix, known))
