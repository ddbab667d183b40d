"""Trained diarization models as folders: configuration and weights, read strictly and without running code."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from speakerkit.bundle import CONFIG, WEIGHTS, read_weights, write_weights
from speakerkit.config import NamedConfig, parse, read_yaml, to_dict, write_yaml
from speakerkit.diarization.config import EENDSettings, TSVADSettings
from speakerkit.errors import BundleError, ConfigError, MissingExtraError
from speakerkit.features import FrontEnd

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from speakerkit.diarization.eend import EEND
    from speakerkit.diarization.tsvad import TSVAD

FORMAT = "speakerkit-diarization-1"


@dataclass(frozen=True)
class DiarizationModelConfig:
    """``config.yaml`` of a model.

    Attributes:
        task: what it is.
        frontend: what it hears.
        settings: its :class:`TSVADSettings` or :class:`EENDSettings`.
        chunk_seconds: that it was trained on.
        encoder: of TS-VAD, the speaker encoder.
        embedding_size: of TS-VAD, D of the speakers' embeddings.
        embedder_sha256: of TS-VAD, digest of the model that makes these.
        provenance: data, recipe, git revision, versions.
    """

    task: Literal["tsvad", "eend"]
    frontend: FrontEnd
    settings: dict[str, Any]
    chunk_seconds: float
    encoder: NamedConfig | None = None
    embedding_size: int = 0
    embedder_sha256: str = ""
    format: str = FORMAT
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class DiarizationModel:
    """A model ready for use.

    Attributes:
        path: its folder.
        config: what its ``config.yaml`` says.
        network: in evaluation, on its device.
        device: that torch runs it on.
        sha256: digest of the weights.
    """

    path: Path
    config: DiarizationModelConfig
    network: TSVAD | EEND
    device: torch.device
    sha256: str


def build_network(config: DiarizationModelConfig) -> TSVAD | EEND:
    """The network that a configuration describes, with random weights.

    Raises:
        ConfigError: an encoder or values that build none.
    """
    from speakerkit.diarization.eend import EEND
    from speakerkit.diarization.tsvad import TSVAD
    from speakerkit.embedding.model import backbone_for

    if config.task == "eend":
        return EEND(config.frontend, parse(EENDSettings, config.settings, "settings"))
    if config.encoder is None or config.embedding_size < 1:
        raise ConfigError("encoder", "is missing, or embedding_size", "copy or train the model again")
    encoder = backbone_for(config.encoder, config.frontend)
    return TSVAD(encoder, config.frontend, config.embedding_size, parse(TSVADSettings, config.settings, "settings"))


def load(path: str | Path, device: str = "auto") -> DiarizationModel:
    """Open the folder of a model, on "cpu", "cuda" or what is there ("auto").

    Raises:
        BundleError: no such folder, another format, or weights that do not fit.
        MissingExtraError: torch is not installed.
    """
    path = Path(path)
    if not (path / CONFIG).is_file() or not (path / WEIGHTS).is_file():
        fault = f"has no {CONFIG} with {WEIGHTS}" if path.is_dir() else "no such model folder"
        raise BundleError(path, fault, "train a model with task: tsvad or eend, or check the path")
    values = read_yaml(path / CONFIG)
    if values.get("format") != FORMAT:
        raise BundleError(path / CONFIG, f"is of format {values.get('format')!r}", f"{FORMAT!r} is a diarization model")
    try:
        from speakerkit.embedding.model import load_tensors
        from speakerkit.nn.device import usable_device
    except ImportError:
        raise MissingExtraError(f"{path}: running a diarization model", "train") from None
    try:
        config = parse(DiarizationModelConfig, values)
        network = build_network(config)
    except ConfigError as error:
        raise BundleError(path / CONFIG, f"{error.subject} {error.fault}", error.remedy) from None
    load_tensors(network, read_weights(path / WEIGHTS), path)
    chosen = usable_device(device)
    digest = hashlib.sha256((path / WEIGHTS).read_bytes()).hexdigest()
    return DiarizationModel(path, config, network.eval().to(chosen), chosen, digest)


def write_model(path: str | Path, config: DiarizationModelConfig, tensors: dict[str, Tensor]) -> Path:
    """Write configuration and weights, and return the folder."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    write_weights(path / WEIGHTS, tensors)
    write_yaml(path / CONFIG, to_dict(config))
    return path
