"""Which device torch works on, said honestly."""

from __future__ import annotations

import os

import torch

from speakerkit.errors import ConfigError


def usable_device(name: str) -> torch.device:
    """The torch device for "auto", "cpu" or "cuda" (this process's, by ``LOCAL_RANK``).

    Raises:
        ConfigError: "cuda" where torch cannot use it.
    """
    if name == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda or "no CUDA"
        raise ConfigError(
            "device cuda",
            f"cannot be used: torch {torch.__version__} (built for {built}) finds {torch.cuda.device_count()} GPUs",
            "check the driver with nvidia-smi, or use --set trainer.device=cpu",
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
