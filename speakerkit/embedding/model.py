"""The network that is trained: front-end, backbone and head in one module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from speakerkit.bundle import CONFIG, Bundle
from speakerkit.config import NamedConfig
from speakerkit.embedding.heads import Head
from speakerkit.embedding.registry import Backbone, build_backbone
from speakerkit.errors import BundleError, ConfigError
from speakerkit.features import FrontEnd
from speakerkit.nn.fbank import Fbank, SpecAugment


class SpeakerNet(nn.Module):
    """Waveforms or features to class logits.

    Args:
        backbone: registered module, features (B, T, F) to embedding (B, D).
        head: margin head, embedding and label to logits.
        fbank: the front-end; ``None`` where batches already hold features.
        spec_augment: masking between front-end and backbone.
    """

    def __init__(self, backbone: Backbone, head: Head, fbank: Fbank | None, spec_augment: SpecAugment) -> None:
        super().__init__()
        self.backbone, self.head, self.fbank, self.spec_augment = backbone, head, fbank, spec_augment

    def forward(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, samples) or (B, T, F), and labels (B,), to logits (B, classes) and the classes taken (B,).

        The logits have the margin in training only: a margin that grows would make validation losses incomparable.
        """
        features = inputs if self.fbank is None else self.fbank(inputs)  # (B, T, F)
        embedding = self.backbone(self.spec_augment(features))  # (B, D)
        if not self.training:
            scores = self.head.scores(embedding)  # (B, classes)
            return scores, scores.argmax(dim=1)
        with torch.no_grad():
            taken = self.head.scores(embedding).argmax(dim=1)
        return self.head(embedding, labels), taken


def backbone_for(model: NamedConfig, frontend: FrontEnd) -> Backbone:
    """The registered backbone, its ``feat_dim`` taken from the front-end."""
    return build_backbone(model.name, **{"feat_dim": frontend.num_mels, **model.args})


def open_backbone(bundle: Bundle) -> Backbone:
    """The backbone that a bundle describes, with its tensors.

    Raises:
        BundleError: no such backbone, arguments that it does not take, sizes that contradict the front-end or
            ``embedding_size``, or tensors that do not fit.
    """
    config, path = bundle.config, bundle.path / CONFIG
    try:
        backbone = backbone_for(config.model, config.frontend)
    except ConfigError as error:
        raise BundleError(path, f"{error.subject} {error.fault}", error.remedy) from None
    except (TypeError, ValueError, RuntimeError, ArithmeticError, AssertionError, LookupError) as error:
        raise BundleError(path, f"model.args do not build a {config.model.name} ({error})", "correct them") from None
    for name, built, said in (
        ("frontend.num_mels", backbone.feat_dim, config.frontend.num_mels),
        ("embedding_size", backbone.embed_dim, config.embedding_size),
    ):
        if built != said:
            raise BundleError(path, f"{name} is {said}, that of its model {built}", "correct model.args, or copy again")
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
