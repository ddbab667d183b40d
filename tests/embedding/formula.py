"""Weights and features from a formula, so that another implementation can be given the very same ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def fill(module: nn.Module) -> None:
    """Set every tensor of a float64 module from its name and size: sines, scaled to keep activations near one."""
    for key, tensor in module.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        wave = torch.sin(1.7 * torch.arange(1, tensor.numel() + 1, dtype=torch.float64) + sum(key.encode()))
        if key.endswith("running_var") or (key.endswith("weight") and tensor.ndim == 1):
            wave = 1 + 0.5 * wave
        elif tensor.ndim > 1:
            wave = wave * (2 / tensor[0].numel()) ** 0.5
        else:
            wave = 0.1 * wave
        tensor.copy_(wave.reshape(tensor.shape))


def features(frames: int, feat_dim: int) -> Tensor:
    """(2, frames, feat_dim) in float64."""
    count = 2 * frames * feat_dim
    return torch.cos(0.9 * torch.arange(count, dtype=torch.float64).square() / count).reshape(2, frames, feat_dim)
