"""What a task must offer so that the trainer can train it; the trainer knows nothing of speech."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from torch import Tensor, nn

Batch = dict[str, Any]
"""Tensors by name, and ``keys``: the utterance ids, for messages and for weighting averages."""


class Task(Protocol):
    """A model, its batches, its loss and its evaluation; nothing of devices, ranks, precision or files."""

    def build_model(self) -> nn.Module:
        """The module to train, parameters drawn from torch's current seed."""

    def train_batches(self, rank: int, world: int) -> Iterator[Batch]:
        """This rank's batches, endless, from where ``load_state_dict`` left off; equally many on every rank."""

    def valid_batches(self) -> Iterable[Batch]:
        """Batches of the validation set, the same at every call; empty for none."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss, and named metrics averaged over the batch. ``model`` may be wrapped for distribution."""

    def evaluate(self, model: Any) -> dict[str, float]:
        """Further validation metrics of the unwrapped model, in evaluation mode."""

    def start_step(self, model: Any, step: int) -> dict[str, float]:
        """Set what the task schedules itself (a margin) before ``step`` of the unwrapped model; values to be logged."""

    def fingerprint(self) -> dict[str, Any]:
        """What must not change between a checkpoint and its resumption (classes, architecture), as plain values."""

    def state_dict(self) -> dict[str, Any]:
        """Position in the data and counts of bad files, as plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint."""
