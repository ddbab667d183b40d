"""What a training minimises: the contract that classification heads and metric losses share, and their registry."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from speakerkit.errors import ConfigError
from speakerkit.registry import Registry

Method = TypeVar("Method", bound=Callable[..., Any])


def full_precision(method: Method) -> Method:
    """Decorator of a method of embeddings: they are float32 at least, and autocast is off.

    In half precision, cosines near one cannot be told apart.
    """

    @functools.wraps(method)
    def exact(self: Any, embedding: Tensor, *rest: Any) -> Any:
        embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
        with torch.autocast(embedding.device.type, enabled=False):
            return method(self, embedding, *rest)

    return exact  # type: ignore[return-value]


class Objective(nn.Module):
    """A loss of embeddings: ``forward(embedding (B, D), label (B,)) -> scalar``.

    The margin is there in training mode only: one that grows would make validation losses incomparable.

    Attributes:
        classifies: whether there are classes: then ``scores`` gives their logits.
        compares: whether utterances of a batch are compared, which then has to hold several of a speaker.
        margin: m; ``None`` where the loss has none.
    """

    classifies: bool = False
    compares: bool = False
    margin: float | None = None

    def forward(self, embedding: Tensor, label: Tensor) -> Tensor:
        return self.loss_and_scores(embedding, label)[0]

    def loss_and_scores(self, embedding: Tensor, label: Tensor) -> tuple[Tensor, Tensor | None]:
        """The loss, and where there are classes ``scores`` from the same cosines, else ``None``."""
        raise NotImplementedError

    def scores(self, embedding: Tensor) -> Tensor:
        """Logits without margin, (B, D) to (B, C): the class an embedding is taken for is the largest."""
        raise NotImplementedError

    def correct(self, scores: Tensor, label: Tensor) -> Tensor:
        """Whether the class each embedding of the batch is taken for is the true one, (B,), from its ``scores``."""
        return scores.argmax(dim=1) == label

    def update(self, margin: float) -> None:
        """Set the margin, 0 <= margin < pi / 2; no effect where the loss has none."""
        if not 0 <= margin < math.pi / 2:
            raise ConfigError("margin", f"is {margin}", "choose one from 0 to below pi / 2")
        if self.margin is not None:
            self.margin = margin


HEADS: Registry[type[Objective]] = Registry("head")
"""Objectives by name; each is built from ``embed_dim``, ``num_classes`` and arguments of its own."""


def number_above(low: float, name: str, value: object) -> float:
    """An argument of a head that is a number above ``low``.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value < math.inf:
        raise ConfigError("head.args", f"{name} is {value!r}", f"it is a number above {low:g}")
    return value


def whole_number(least: int, name: str, value: object) -> int:
    """An argument of a head that is a whole number from ``least`` on.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError("head.args", f"{name} is {value!r}", f"it is a whole number from {least} on")
    return value


def true_or_false(name: str, value: object) -> bool:
    """An argument of a head that is true or false.

    Raises:
        ConfigError: it is neither.
    """
    if not isinstance(value, bool):
        raise ConfigError("head.args", f"{name} is {value!r}", "it is true or false")
    return value


def one_of(known: tuple[str, ...], name: str, value: object) -> str:
    """An argument of a head that is one of a few words.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(value, str) or value not in known:
        raise ConfigError("head.args", f"{name} is {value!r}", f"choose from {', '.join(known)}")
    return value
