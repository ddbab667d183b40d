"""Looking at what a run has left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from speakerkit.training.checkpoint import list_checkpoints, load_checkpoint


def identical(one: Any, other: Any) -> bool:
    """Whether two states are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(identical(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(identical, one, other))
    return bool(one == other)


def last_state(folder: Path) -> dict[str, Any]:
    return load_checkpoint(list_checkpoints(folder / "checkpoints")[-1])


def log_of(folder: Path) -> str:
    return (folder / "train.log").read_text()
