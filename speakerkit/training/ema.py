"""The exponential moving average of a model's weights, kept beside it and used for validation and publishing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class MovingAverage:
    """Mean of the weights after steps 1 to n, those of step i weighted by ``decay ** (n - i)``, in float32.

    This is Adam's bias-corrected average (Kingma & Ba 2015, section 3): the weights before the first step are no part
    of it. Batch-norm statistics are averaged in the same way, so that they belong to the averaged weights as much as
    their own do; counters are those of the model.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._model = model
        tracked = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        self._names = list(tracked)
        self._current = list(tracked.values())  # the model's own: loading and training change them in place
        self._averages = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in self._current]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self.updates += 1
        share = (1 - self.decay) / (1 - self.decay**self.updates)  # 1 at first
        torch._foreach_lerp_(self._averages, [tensor.float() for tensor in self._current], share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with the averaged weights; afterwards it has its own again, bit for bit."""
        if not self.updates:
            yield
            return
        own = [tensor.clone() for tensor in self._current]
        self._set(self._averages)
        try:
            yield
        finally:
            self._set(own)

    @torch.no_grad()
    def _set(self, tensors: list[Tensor]) -> None:
        for target, tensor in zip(self._current, tensors, strict=True):
            target.copy_(tensor)

    def state_dict(self) -> dict[str, Any]:
        """``model`` as a whole state dictionary, and the number of ``updates``."""
        averages = dict(zip(self._names, self._averages, strict=True)) if self.updates else {}
        return {"updates": self.updates, "model": {**self._model.state_dict(), **averages}}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.updates = int(state["updates"])
        for name, average in zip(self._names, self._averages, strict=True):
            average.copy_(state["model"][name])
