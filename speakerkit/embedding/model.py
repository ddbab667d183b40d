"""The network that is trained: front-end, backbone and head in one module."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from speakerkit.bundle import CONFIG, GRAPH_ONLY, Bundle
from speakerkit.config import NamedConfig
from speakerkit.embedding.objective import Objective
from speakerkit.embedding.registry import Backbone, build_backbone
from speakerkit.errors import BundleError, ConfigError, first_line
from speakerkit.features import FrontEnd
from speakerkit.nn.fbank import Fbank, SpecAugment, Waveform

UNBUILDABLE = (  # what builders raise for values that make no network
    TypeError,
    ValueError,
    RuntimeError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    UserWarning,
)


class SpeakerNet(nn.Module):
    """Waveforms or features, and labels, to a loss.

    Args:
        backbone: registered module, features (B, T, F) to embedding (B, D).
        head: embedding and label to a loss.
        fbank: the front-end; ``None`` where batches already hold features.
        spec_augment: masking between front-end and backbone.
    """

    def __init__(
        self, backbone: Backbone, head: Objective, fbank: Fbank | Waveform | None, spec_augment: SpecAugment
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.fbank, self.spec_augment = backbone, head, fbank, spec_augment

    def forward(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, samples) or (B, T, F), and labels (B,), to the loss and to named metrics of the batch."""
        loss, scores = self.head.loss_and_scores(self.embed(inputs), labels)
        return loss, accuracy(self.head, scores, labels)

    def embed(self, inputs: Tensor) -> Tensor:
        """(B, samples) or (B, T, F) to embeddings (B, D), masked in training."""
        features = inputs if self.fbank is None else self.fbank(inputs)  # (B, T, F)
        return self.backbone(self.spec_augment(features))


def accuracy(head: Objective, scores: Tensor | None, labels: Tensor) -> dict[str, Tensor]:
    """The metric of a head's logits without margin (B, classes), where it has classes."""
    return {} if scores is None else {"accuracy": head.correct(scores, labels).float().mean()}


def backbone_for(model: NamedConfig, frontend: FrontEnd) -> Backbone:
    """The registered backbone, its ``feat_dim`` taken from the front-end.

    Raises:
        ConfigError: no such backbone, arguments that it does not take, or another ``feat_dim`` than the front-end's.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Initializing zero-element tensors")  # a size of 0, which torch lets pass
        try:
            backbone = build_backbone(model.name, **{"feat_dim": frontend.feature_dim, **model.args})
        except UNBUILDABLE as error:
            reason = first_line(error)
            raise ConfigError("model.args", f"do not build a {model.name} ({reason})", "correct them") from None
    if backbone.hears != frontend.kind:
        fault = f"is {frontend.kind!r}, a {model.name} hears {backbone.hears!r}"
        raise ConfigError("frontend.kind", fault, "correct one of the two")
    if backbone.feat_dim != frontend.feature_dim:
        fault = f"is {frontend.feature_dim}, that of its model {backbone.feat_dim}"
        raise ConfigError("frontend.num_mels", fault, "correct one of the two")
    return backbone


def open_backbone(bundle: Bundle) -> Backbone:
    """The backbone that a bundle describes, with its tensors.

    Raises:
        BundleError: no such backbone, arguments that it does not take, sizes that contradict the front-end or
            ``embedding_size``, or tensors that do not fit.
    """
    config, path = bundle.config, bundle.path / CONFIG
    if config.model.name == GRAPH_ONLY:
        raise BundleError(bundle.path, "is an ONNX graph without weights", "give the bundle of weights of that model")
    try:
        backbone = backbone_for(config.model, config.frontend)
    except ConfigError as error:
        raise BundleError(path, f"{error.subject} {error.fault}", error.remedy) from None
    if backbone.embed_dim != config.embedding_size:
        fault = f"embedding_size is {config.embedding_size}, that of its model {backbone.embed_dim}"
        raise BundleError(path, fault, "correct model.args, or copy again")
    load_backbone(backbone, bundle)
    return backbone


def load_backbone(backbone: Backbone, bundle: Bundle) -> None:
    """Load a bundle's tensors; see :func:`load_tensors`."""
    load_tensors(backbone, bundle.tensors(), bundle.path)


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Load a state dictionary strictly; a missing, unknown or misshapen tensor is an error that names it.

    Raises:
        BundleError: the tensors do not fit.
    """
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:])
        raise BundleError(source, f"does not fit {type(module).__name__}: {reason}", "check model.args") from None
