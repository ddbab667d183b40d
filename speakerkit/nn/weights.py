"""Reading torch checkpoints without running what they hold."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speakerkit.errors import BundleError, first_line


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU, refusing anything that would run code.

    Raises:
        BundleError: missing, damaged, or holding more than tensors and plain values.
    """
    if not Path(path).is_file():
        raise BundleError(path, "no such checkpoint", "check the path")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = first_line(error)
        raise BundleError(
            path, f"is refused: it holds more than tensors, or is damaged ({reason})", "use a file you trust"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        reason = first_line(error)
        raise BundleError(path, f"is damaged ({reason})", "use an older checkpoint") from None
    if not isinstance(state, dict):
        raise BundleError(path, "holds no state dictionary", "check that it is a checkpoint")
    return state


def model_of(state: dict[str, Any], path: str | Path) -> dict[str, Tensor]:
    """The model's tensors in a checkpoint.

    Raises:
        BundleError: it holds none.
    """
    model = state.get("model")
    if not isinstance(model, dict) or not all(isinstance(tensor, Tensor) for tensor in model.values()):
        raise BundleError(path, "is no checkpoint of a training run", "name one of EXP_DIR/checkpoints")
    return model
