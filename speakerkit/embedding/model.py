"""The network that is trained: front-end, backbone and head in one module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speakerkit.bundle import Bundle
from speakerkit.config import NamedConfig
from speakerkit.embedding.heads import Head
from speakerkit.embedding.registry import Backbone, build_backbone
from speakerkit.errors import BundleError
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
        """(B, samples) or (B, T, F), and labels (B,), to logits with margin (B, classes) and the classes taken (B,)."""
        features = inputs if self.fbank is None else self.fbank(inputs)  # (B, T, F)
        embedding = self.backbone(self.spec_augment(features))  # (B, D)
        with torch.no_grad():
            taken = self.head.scores(embedding).argmax(dim=1)
        return self.head(embedding, labels), taken


def backbone_for(model: NamedConfig, frontend: FrontEnd) -> Backbone:
    """The registered backbone, its ``feat_dim`` taken from the front-end."""
    return build_backbone(model.name, **{"feat_dim": frontend.num_mels, **model.args})


def load_backbone(backbone: Backbone, bundle: Bundle) -> None:
    """Load a bundle's tensors; a missing, unknown or misshapen one is an error that names it.

    Raises:
        BundleError: the tensors do not fit.
    """
    try:
        backbone.load_state_dict(bundle.tensors())
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:])
        raise BundleError(
            bundle.path, f"does not fit {type(backbone).__name__}: {reason}", "check model.args"
        ) from None
