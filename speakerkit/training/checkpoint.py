"""Checkpoints: written atomically, read without running code, kept and thrown away by rule, averaged."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speakerkit.errors import BundleError, first_line
from speakerkit.files import atomic_open, atomic_path
from speakerkit.weights import load_checkpoint, model_of

logger = logging.getLogger("speakerkit.training")

NAME = re.compile(r"step_(\d{8})\.pt")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps stands."""
    return folder / f"step_{step:08d}.pt"


def step_of(path: Path) -> int:
    """The steps done in a step checkpoint."""
    return int(path.stem.removeprefix("step_"))


def list_checkpoints(folder: Path) -> list[Path]:
    """Step checkpoints in ``folder``, oldest first."""
    return sorted(path for path in folder.glob("step_*.pt") if NAME.fullmatch(path.name))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain values); a killed write leaves the older checkpoints alone.

    Raises:
        BundleError: the disk does not take it.
    """
    try:
        with atomic_open(path, "wb") as stream:
            torch.save(state, stream)
    except (OSError, RuntimeError) as error:
        reason = first_line(error)
        raise BundleError(path, f"cannot be written ({reason})", "check the disk's space and permissions") from None


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that can be read, with its content; ``None`` where there is no file at all.

    Raises:
        BundleError: files are there, but none can be read.
    """
    error: BundleError | None = None
    for path in reversed(list_checkpoints(folder)):
        try:
            state = load_checkpoint(path)
        except BundleError as caught:
            error = error or caught
            continue
        if error is not None:
            logger.warning("%s; going on from %s", error, path)
        return path, state
    if error is not None:
        raise error
    return None


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` step checkpoints."""
    for path in list_checkpoints(folder)[:-keep]:
        path.unlink()


def keep_best(folder: Path, path: Path) -> None:
    """Copy ``path`` to ``best.pt``."""
    with atomic_path(folder / "best.pt") as temporary:
        shutil.copyfile(path, temporary)


def average_states(paths: Sequence[Path], ema: bool = False) -> dict[str, Tensor]:
    """Arithmetic mean of the ``model`` of several checkpoints, in float64; counters are taken from the last.

    Args:
        ema: take the moving averages that the checkpoints hold instead of the weights themselves.

    Raises:
        BundleError: no paths, checkpoints whose tensors differ in name or shape, or without a moving average.
    """
    if not paths:
        raise BundleError(None, "there is no checkpoint to average", "train first")
    total: dict[str, Tensor] = {}
    for path in paths:
        model = _weights(path, ema)
        if total and {k: v.shape for k, v in total.items()} != {k: v.shape for k, v in model.items()}:
            raise BundleError(path, "has other tensors than the checkpoints before it", "average one run only")
        for name, tensor in model.items():
            if not tensor.is_floating_point():
                total[name] = tensor
            else:
                total[name] = total[name] + tensor.double() if name in total else tensor.double()
    return {
        name: (tensor / len(paths)).float() if tensor.is_floating_point() else tensor for name, tensor in total.items()
    }


def _weights(path: Path, ema: bool) -> dict[str, Tensor]:
    state = load_checkpoint(path)
    if not ema:
        return model_of(state, path)
    if not isinstance(state.get("ema"), dict):
        raise BundleError(path, "holds no moving average of the weights", "train with trainer.ema, or use --no-ema")
    return model_of(state["ema"], path)
