"""Reading torch checkpoints, our own and published ones, without running what they hold; torch is loaded on use."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speakerkit.errors import BundleError, MissingExtraError, first_line

if TYPE_CHECKING:
    from torch import Tensor


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU, refusing anything that would run code.

    Raises:
        BundleError: missing, damaged, or holding more than tensors and plain values.
        MissingExtraError: torch is not installed.
    """
    if not Path(path).is_file():
        raise BundleError(path, "no such checkpoint", "check the path")
    try:
        import torch
    except ImportError:
        raise MissingExtraError(f"{path}: reading a checkpoint", "train") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on pickles of other protocols before it refuses them
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # what torch says of it advises to run the code
        fault = "is refused: it holds more than tensors, or is damaged or no checkpoint of torch"
        raise BundleError(path, fault, "fetch it again, or ask for a file of tensors only") from None
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        reason = first_line(error).split(". ")[0]
        fault = f"is damaged, or no checkpoint of torch ({reason})"
        raise BundleError(path, fault, "use an older checkpoint, or fetch it again") from None
    if not isinstance(state, dict):
        raise BundleError(path, "holds no state dictionary", "check that it is a checkpoint")
    return state


def model_of(state: dict[str, Any], path: str | Path) -> dict[str, Tensor]:
    """The model's tensors in a checkpoint of a training run.

    Raises:
        BundleError: it holds none.
    """
    model: Any = state.get("model")
    if not _is_state(model):
        raise BundleError(path, "is no checkpoint of a training run", "name one of EXP_DIR/checkpoints")
    return model


def published_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint as toolkits publish them.

    They stand bare, or under ``state_dict`` or ``model``; their names may begin with the ``module.`` of a parallel
    training. Averaging makes floats of the counters ``num_batches_tracked``; they become integers again.

    Raises:
        BundleError: as :func:`load_checkpoint`, or no tensors in any of these places.
    """
    state = load_checkpoint(path)
    inner = next((state[name] for name in ("state_dict", "model") if isinstance(state.get(name), dict)), state)
    if not _is_state(inner):
        raise BundleError(path, "holds no tensors by name", "give a file with the model's state dictionary")
    if all(name.startswith("module.") for name in inner):
        inner = {name.removeprefix("module."): tensor for name, tensor in inner.items()}
    return {name: tensor.long() if name.endswith("num_batches_tracked") else tensor for name, tensor in inner.items()}


def require_finite(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse weights of a training that broke, or of a file that did.

    Raises:
        BundleError: NaN or infinity; it names the first tensor that holds them.
    """
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise BundleError(path, f"holds NaN or infinity in {name}", "use an older checkpoint, or fetch it again")


def _is_state(value: Any) -> bool:
    from torch import Tensor

    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )
