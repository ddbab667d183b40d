"""The network that is trained: an extraction model, and what makes voices of enrolments."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.config import NamedConfig
from speakerkit.embedding.model import UNBUILDABLE, load_tensors
from speakerkit.embedding.registry import Backbone
from speakerkit.errors import BundleError, ConfigError, first_line
from speakerkit.extraction.bundle import ExtractionBundle
from speakerkit.extraction.registry import Extracted, Extractor, build_extractor, extractor_arguments
from speakerkit.features import FrontEnd
from speakerkit.nn.fbank import front_end_module


class VoiceEncoder(nn.Module):
    """Enrolments to voices by an embedding model.

    Args:
        backbone: of the embedding model.
        frontend: of the embedding model, which says the enrolments' rate.
        tuned: whether it is trained on; otherwise it stays in evaluation.
    """

    def __init__(self, backbone: Backbone, frontend: FrontEnd, tuned: bool) -> None:
        super().__init__()
        self.backbone, self.fbank, self.tuned = backbone, front_end_module(frontend), tuned
        self.requires_grad_(tuned)

    def forward(self, enrolments: Tensor) -> Tensor:
        """(N, samples) to embeddings (N, D), as the embedding model gives them."""
        with torch.set_grad_enabled(self.tuned and torch.is_grad_enabled()):
            embeddings: Tensor = self.backbone(self.fbank(enrolments))
        return embeddings

    def train(self, mode: bool = True) -> VoiceEncoder:
        """As in torch; an encoder that is not trained stays in evaluation."""
        super().train(mode and self.tuned)
        return self


class Conditioned(nn.Module):
    """An extraction model as it is shipped: voices are embeddings, as a bundle gives them, or enrolled by itself.

    Attributes:
        extractor: the model.
        centre: (D,) mean of embeddings in training, which is taken from every embedding; the rest counts by its
            direction only.
    """

    centre: Tensor

    def __init__(self, extractor: Extractor, embedded: bool) -> None:
        super().__init__()
        self.extractor, self.embedded = extractor, embedded
        self.register_buffer("centre", torch.zeros(extractor.voice_size if embedded else 0))

    def forward(self, mixture: Tensor, voices: Tensor | None = None, complete: Tensor | None = None) -> Extracted:
        """Mixtures (B, S) and voices (B, K, D) to estimates; a blind separator takes no voices.

        ``complete`` (B,) is for models that take it.
        """
        if voices is None:
            return self.extractor(mixture, None)
        if self.embedded:
            voices = F.normalize(voices - self.centre, dim=-1) * math.sqrt(voices.shape[-1])
        return self.extractor(mixture, voices, *([] if complete is None else [complete]))


class ExtractionNet(nn.Module):
    """Mixtures and enrolments to estimates, and to logits of the training speakers.

    Args:
        conditioned: the model.
        encoder: that makes voices of enrolments; ``None`` where the model does itself, or separates blindly.
        speakers: classes of the speaker loss, C; 0 for none.
    """

    def __init__(self, conditioned: Conditioned, encoder: VoiceEncoder | None, speakers: int) -> None:
        super().__init__()
        self.conditioned, self.encoder = conditioned, encoder
        self.classifier = nn.Linear(conditioned.extractor.voice_size, speakers) if speakers else None

    def forward(
        self,
        mixture: Tensor,
        enrolments: Tensor | None,
        lengths: Tensor | None,
        complete: Tensor | None = None,
    ) -> tuple[Extracted, Tensor | None]:
        """Mixtures (B, S), enrolments (B, K, samples) of ``lengths`` (B, K) to estimates and logits (B, K, C).

        ``complete`` (B,) is as in :class:`Conditioned`.
        """
        if enrolments is None or lengths is None:
            return self.conditioned(mixture), None
        voices = self.voices(enrolments.flatten(0, 1), lengths.flatten()).unflatten(0, lengths.shape)  # (B, K, D)
        logits = None if self.classifier is None else self.classifier(voices)
        return self.conditioned(mixture, voices, complete), logits

    def voices(self, enrolments: Tensor, lengths: Tensor) -> Tensor:
        """Enrolments (N, samples), of which the first ``lengths`` (N,) are real, to voices (N, D)."""
        if self.encoder is None:
            return self.conditioned.extractor.enrol(enrolments, lengths)
        voices: Tensor = self.encoder(enrolments)
        return voices


def build_conditioned(model: NamedConfig, sample_rate: int, embedding_size: int | None) -> Conditioned:
    """The model of that name with random weights, for embeddings of a size or, without one, as its arguments say.

    Models that ask for the ``rate`` of the samples are told it.

    Raises:
        ConfigError: no such model, or arguments that build none.
    """
    given = {"rate": sample_rate} if "rate" in extractor_arguments(model.name) else {}
    if embedding_size is not None:
        given["voice_size"] = embedding_size
    try:
        extractor = build_extractor(model.name, **{**given, **model.args})
    except UNBUILDABLE as error:
        fault = f"do not build a {model.name} ({first_line(error)})"
        raise ConfigError("model.args", fault, "correct them") from None
    if embedding_size is not None and extractor.voice_size != embedding_size:
        fault = f"is {extractor.voice_size}, embeddings have {embedding_size} values"
        raise ConfigError("model.args.voice_size", fault, "leave it out")
    return Conditioned(extractor, embedding_size is not None)


def open_conditioned(bundle: ExtractionBundle) -> Conditioned:
    """The model of a folder, in evaluation.

    Raises:
        BundleError: a configuration that builds none, or tensors that do not fit.
    """
    config = bundle.config
    try:
        size = config.voice_size if config.voices == "embedding" else None
        conditioned = build_conditioned(config.model, config.sample_rate, size)
    except ConfigError as error:
        raise BundleError(bundle.path, f"{error.subject} {error.fault}", error.remedy) from None
    load_tensors(conditioned, bundle.tensors(), bundle.path)
    return conditioned.eval()
