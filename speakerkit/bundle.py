"""Model bundles: a folder with configuration and weights, read strictly and without running code."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speakerkit.config import NamedConfig, parse, read_yaml, to_dict, write_yaml
from speakerkit.errors import BundleError, ConfigError
from speakerkit.features import FrontEnd
from speakerkit.weights import require_finite
from speakerkit.wespeaker import CHECKPOINT, is_wespeaker, read_wespeaker, wespeaker_tensors

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "speakerkit-bundle-1"
CONFIG, WEIGHTS, GRAPH, CALIBRATION = "config.yaml", "model.safetensors", "model.onnx", "calibration.json"
GRAPH_ONLY = "onnx"  # model.name where there is a graph and no weights


@dataclass(frozen=True)
class BundleConfig:
    """``config.yaml`` of a bundle.

    Attributes:
        model: architecture.
        frontend: front-end, its dither as in training (inference uses none).
        embedding_size: D.
        provenance: data, recipe, git revision, versions.
        results: figures measured with this model, by test set.
    """

    model: NamedConfig
    frontend: FrontEnd
    embedding_size: int
    format: str = FORMAT
    provenance: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """A bundle folder whose configuration has been read.

    Attributes:
        path: the folder.
        config: what its ``config.yaml`` says.
        weights: name of the file of its weights: ``model.safetensors``, or ``avg_model.pt`` in WeSpeaker's folders.
    """

    path: Path
    config: BundleConfig
    weights: str = WEIGHTS

    @property
    def graph(self) -> Path | None:
        """The ONNX file, where there is one."""
        return self.path / GRAPH if (self.path / GRAPH).is_file() else None

    def digest(self) -> str:
        """SHA-256 of the weights (of the ONNX file where there are none): which model made an embedding."""
        source = self.path / (self.weights if self.has_weights else GRAPH)
        return hashlib.sha256(source.read_bytes()).hexdigest()

    @property
    def has_weights(self) -> bool:
        """Whether the file of the weights is there."""
        return (self.path / self.weights).is_file()

    def tensors(self) -> dict[str, Tensor]:
        """The backbone's state dictionary.

        Raises:
            BundleError: no weights, or damaged ones, or NaN among them.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.path / self.weights
        if path.name == CHECKPOINT:
            tensors = wespeaker_tensors(path)[0]
            require_finite(tensors, path)
            return tensors
        if not path.is_file():
            raise BundleError(path, "no such file", "this bundle runs from its ONNX file only")
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise BundleError(path, f"is damaged ({error})", "copy or train the bundle again") from None
        require_finite(tensors, path)
        return tensors

    def threshold(self) -> tuple[float, str] | None:
        """Cosine threshold and where it came from, out of ``calibration.json``; ``None`` where uncalibrated."""
        path = self.path / CALIBRATION
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            threshold, source = float(values["threshold"]), str(values["source"])
        except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
            raise BundleError(path, f"holds no threshold ({error!r})", "calibrate the bundle again") from None
        if not -1 <= threshold <= 1:
            raise BundleError(path, f"holds a threshold of {threshold}", "a cosine lies in [-1, 1]; calibrate again")
        return threshold, source


def read_bundle(path: str | Path) -> Bundle:
    """Open a bundle folder, or one of WeSpeaker's (``config.yaml`` and ``avg_model.pt``).

    Raises:
        BundleError: no folder, no configuration, no weights, or another format.
        ConfigError: unknown keys or wrong values in its configuration.
    """
    path = Path(path)
    if path.is_file():
        raise BundleError(path, "is a file, not a model folder", "make a folder of it with `speakerkit import`")
    if not path.is_dir():
        raise BundleError(path, "no such model folder", "train one with examples/voxceleb/run.sh, or check the path")
    if not (path / CONFIG).is_file():
        raise BundleError(path, f"has no {CONFIG}", "a bundle holds config.yaml with model.safetensors or model.onnx")
    values, weights = read_yaml(path / CONFIG), WEIGHTS
    if is_wespeaker(values):
        if not (path / CHECKPOINT).is_file():
            raise BundleError(path, f"has WeSpeaker's {CONFIG} but no {CHECKPOINT}", "give the checkpoint this name")
        values, weights = {**read_wespeaker(path / CONFIG, values), "format": FORMAT}, CHECKPOINT
    elif values.get("format") != FORMAT:
        raise BundleError(path / CONFIG, f"is of format {values.get('format')!r}", f"only {FORMAT!r} is read")
    config = parse_config(values, path / CONFIG)
    if not any((path / name).is_file() for name in (weights, GRAPH)):
        raise BundleError(path, f"has neither {WEIGHTS} nor {GRAPH}", "copy the whole folder")
    return Bundle(path, config, weights)


def parse_config(values: dict[str, Any], path: Path) -> BundleConfig:
    """The configuration in plain values.

    Raises:
        BundleError: unknown keys or wrong values; it names ``path``, which they are from.
    """
    try:
        config = parse(BundleConfig, values)
    except ConfigError as error:
        raise BundleError(path, f"{error.subject} {error.fault}", error.remedy) from None
    if config.embedding_size < 1:
        raise BundleError(path, f"embedding_size is {config.embedding_size}", "copy or make the bundle again")
    return config


def write_bundle(path: str | Path, config: BundleConfig, tensors: dict[str, Tensor]) -> Bundle:
    """Write configuration and weights; an ONNX file of earlier weights is removed.

    The front-end's ``min_duration`` must be what the model needs; the caller sees to it.
    """
    from safetensors.torch import save_file

    from speakerkit.files import atomic_path

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    (path / GRAPH).unlink(missing_ok=True)
    with atomic_path(path / WEIGHTS) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    write_yaml(path / CONFIG, to_dict(config))
    return Bundle(path, config)


def write_graph_bundle(path: str | Path, config: BundleConfig, graph: Path) -> Bundle:
    """Write configuration and a copy of an ONNX file: a bundle without weights, which runs as it is."""
    from speakerkit.files import atomic_path

    path = Path(path)
    with atomic_path(path / GRAPH) as temporary:
        temporary.write_bytes(graph.read_bytes())
    write_yaml(path / CONFIG, to_dict(config))
    return Bundle(path, config)
