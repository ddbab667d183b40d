"""Where a frame stands in its sequence, for layers that would not know."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoids(count: int, size: int, like: Tensor) -> Tensor:
    """Sine-cosine positional encoding (count, size), of Vaswani et al. 2017."""
    place = torch.arange(count, device=like.device, dtype=torch.float32)[:, None]
    rates = torch.exp(torch.arange(0, size, 2, device=like.device) * (-math.log(10000.0) / size))
    return torch.stack([(place * rates).sin(), (place * rates).cos()], dim=2).flatten(1).to(like.dtype)
