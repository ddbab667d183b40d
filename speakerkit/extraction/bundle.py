"""Extraction models as folders: configuration, weights or ONNX graph, and the embedding model that voices come from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from speakerkit.bundle import CONFIG, GRAPH, WEIGHTS, Bundle, read_bundle, read_weights, write_weights
from speakerkit.config import NamedConfig, parse, read_yaml, to_dict, write_yaml
from speakerkit.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "speakerkit-extraction-1"
VOICE = "voice"  # folder of the embedding model
ENROL_GRAPH = "enrol.onnx"  # the speaker encoder of a model that has its own
PRESENCE = "presence.json"  # the threshold of presence, which is that of the weights beside it


@dataclass(frozen=True)
class ExtractorConfig:
    """``config.yaml`` of a model.

    Attributes:
        model: architecture.
        sample_rate: Hz, of mixtures and estimates.
        voices: what it is told voices by: "embedding" of the model in the folder ``voice``, "joint" by an encoder of
            its own, "none" for blind separation.
        voice_size: D.
        chunk_seconds: of the mixtures that it was trained on.
        scale_free: whether its loss left the scale of its output free, as SI-SDR does: it is brought to the mixture's.
        provenance: data, recipe, git revision, versions.
        results: figures measured with this model, by test set.
    """

    model: NamedConfig
    sample_rate: int
    voices: Literal["embedding", "joint", "none"]
    voice_size: int = 0
    chunk_seconds: float = 4.0
    scale_free: bool = False
    format: str = FORMAT
    provenance: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExtractionBundle:
    """A model's folder whose configuration has been read.

    Attributes:
        path: the folder.
        config: what its ``config.yaml`` says.
    """

    path: Path
    config: ExtractorConfig

    @property
    def graph(self) -> Path | None:
        """The ONNX file, where there is one."""
        return self.path / GRAPH if (self.path / GRAPH).is_file() else None

    @property
    def has_weights(self) -> bool:
        """Whether torch can run it."""
        return (self.path / WEIGHTS).is_file()

    def digest(self) -> str:
        """SHA-256 of the weights, or of the ONNX file where there are none."""
        return hashlib.sha256((self.path / (WEIGHTS if self.has_weights else GRAPH)).read_bytes()).hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        """State dictionary of :class:`speakerkit.extraction.model.Conditioned`.

        Raises:
            BundleError: no weights, or damaged ones, or NaN among them.
        """
        if not self.has_weights:
            raise BundleError(self.path / WEIGHTS, "no such file", "this model runs from its ONNX file only")
        return read_weights(self.path / WEIGHTS)

    def voice(self) -> Bundle:
        """The embedding model.

        Raises:
            BundleError: there is none, or one with embeddings of another size.
        """
        if self.config.voices != "embedding":
            raise BundleError(self.path, "hears no embeddings", "enrol with its own encoder")
        bundle = read_bundle(self.path / VOICE)
        if bundle.config.embedding_size != self.config.voice_size:
            fault = f"gives embeddings of {bundle.config.embedding_size}, not of {self.config.voice_size}"
            raise BundleError(bundle.path, fault, "copy the whole folder")
        return bundle


def is_extractor(path: str | Path) -> bool:
    """Whether a folder says that it holds an extraction model."""
    config = Path(path) / CONFIG
    return config.is_file() and read_yaml(config).get("format") == FORMAT


def read_extractor(path: str | Path) -> ExtractionBundle:
    """Open the folder of a model.

    Raises:
        BundleError: no such folder, another format, or neither weights nor graph.
    """
    path = Path(path)
    if not (path / CONFIG).is_file():
        fault = f"has no {CONFIG}" if path.is_dir() else "no such model folder"
        raise BundleError(path, fault, "train one with examples/librimix/run.sh, or check the path")
    values = read_yaml(path / CONFIG)
    if values.get("format") != FORMAT:
        fault = f"is of format {values.get('format')!r}"
        raise BundleError(path / CONFIG, fault, f"{FORMAT!r} is an extraction model")
    try:
        config = parse(ExtractorConfig, values)
    except ConfigError as error:
        raise BundleError(path / CONFIG, f"{error.subject} {error.fault}", error.remedy) from None
    bundle = ExtractionBundle(path, config)
    if not bundle.has_weights and bundle.graph is None:
        raise BundleError(path, f"has neither {WEIGHTS} nor {GRAPH}", "copy the whole folder")
    return bundle


def write_extractor(path: str | Path, config: ExtractorConfig, tensors: dict[str, Tensor]) -> ExtractionBundle:
    """Write configuration and weights; what belongs to earlier weights is removed. ``voice`` is the caller's."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    for stale in (GRAPH, ENROL_GRAPH, PRESENCE):
        (path / stale).unlink(missing_ok=True)
    write_weights(path / WEIGHTS, tensors)
    write_yaml(path / CONFIG, to_dict(config))
    return ExtractionBundle(path, config)
