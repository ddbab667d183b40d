"""``speakerkit doctor``."""

from __future__ import annotations

import json
import os
import platform
import re
from importlib import metadata

import typer

from speakerkit.cli.options import Json
from speakerkit.errors import one_line


def doctor(as_json: Json = False) -> None:
    """Versions, execution providers, GPU and audio formats of this installation."""
    packages = _packages()
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


def _packages() -> dict[str, dict[str, str | None]]:
    """Versions of what speakerkit declares to need: "core", then each extra that is meant for users."""
    try:
        declared = metadata.requires("speakerkit") or []
    except metadata.PackageNotFoundError:
        declared = []
    found: dict[str, dict[str, str | None]] = {}
    for requirement in declared:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        extra = re.search(r"""extra == ["']([^"']+)""", requirement)
        found.setdefault(extra[1] if extra else "core", {})[name] = _version(name)
    found.pop("dev", None)
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _providers() -> list[str]:
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        return [one_line(f"onnxruntime cannot be imported ({error})")]
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
    try:
        import soundfile
    except (ImportError, OSError) as error:  # the package without the library
        return [one_line(f"soundfile cannot be imported ({error})")]
    formats = sorted(name.lower() for name in soundfile.available_formats())
    try:
        import av  # noqa: F401
    except (ImportError, OSError):
        return formats
    return [*formats, "m4a", "webm"]
