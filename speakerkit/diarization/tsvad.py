"""TS-VAD: who of some known speakers speaks in each frame (Medennikov et al. 2020), as the baseline in USED has it.

Paper: "USED: Universal Speaker Extraction and Diarization", section IV-B. A pre-trained speaker encoder gives features
of the frames and, beforehand, the speakers' embeddings; transformers replace the LSTMs of the original.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.diarization.activity import Frames
from speakerkit.diarization.config import TSVADSettings
from speakerkit.embedding.registry import Backbone
from speakerkit.errors import ConfigError
from speakerkit.features import FrontEnd
from speakerkit.nn.fbank import front_end_module
from speakerkit.nn.positions import sinusoids

PROBE = 160  # frames (units of the front-end's shift) that show how an encoder's output depends on its input


def transformer(settings: TSVADSettings, layers: int) -> nn.TransformerEncoder:
    """Layers of self-attention over frames, normalised after each part as in the original."""
    layer = nn.TransformerEncoderLayer(
        settings.size, settings.heads, settings.feed_forward, settings.dropout, batch_first=True
    )
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


class Backend(nn.Module):
    """Frame features and embeddings of k speakers to logits: 9.31 M values at the paper's sizes and k = 3."""

    def __init__(self, settings: TSVADSettings) -> None:
        super().__init__()
        size, slots, kernel = settings.size, settings.slots, settings.kernel
        self.settings = settings
        self.speaker_layers = transformer(settings, settings.speaker_layers)
        self.down_sampling = nn.Conv1d(slots * size, size, kernel, padding=kernel // 2)  # over speakers, not frames
        self.joint_layers = transformer(settings, settings.joint_layers)
        self.output = nn.Linear(size, slots)

    def forward(self, frames: Tensor, voices: Tensor) -> Tensor:
        """Frames (B, T, d / 2) and voices (B, k, d / 2) to (B, T, k)."""
        (batch, count, _), slots = frames.shape, voices.shape[1]
        heard, wanted = frames[:, None].expand(-1, slots, -1, -1), voices[:, :, None].expand(-1, -1, count, -1)
        second = heard * wanted if self.settings.fusion == "product" else wanted
        pairs = torch.cat([heard, second], dim=3)  # (batch, slots, frames, size)
        pairs = pairs + self.settings.positions * sinusoids(count, pairs.shape[3], pairs)
        each = self.speaker_layers(pairs.flatten(0, 1)).unflatten(0, (batch, slots))
        joined = each.permute(0, 1, 3, 2).flatten(1, 2)  # (batch, slots * size, frames)
        joint = self.joint_layers(self.down_sampling(joined).transpose(1, 2))
        return self.output(joint)  # (batch, frames, slots)


class TSVAD(nn.Module):
    """Speech and speaker embeddings to the logits of each speaker's activity.

    Args:
        encoder: speaker encoder whose ``frame_features`` are heard; what it needs for embeddings only is not trained.
        frontend: of the encoder.
        embedding_size: of the speakers' embeddings.

    Attributes:
        frames: where the frames of the output lie.
        slots: k.
        min_samples: the shortest input.
        centre: mean of the speakers' embeddings in training, taken from every embedding.
        hears_gradients: whether the encoder is trained; off, it is as in evaluation.

    Raises:
        ConfigError: an encoder that gives no features of frames.
    """

    centre: Tensor

    def __init__(self, encoder: Backbone, frontend: FrontEnd, embedding_size: int, settings: TSVADSettings) -> None:
        super().__init__()
        self.settings, self.slots = settings, settings.slots
        self.fbank = front_end_module(frontend)
        self.encoder = encoder
        dim, stride = _frame_geometry(encoder, frontend, settings.window > 0)
        half = settings.size // 2
        if not settings.window:
            self.frame_projection = nn.Sequential(nn.Linear(dim, half), nn.LayerNorm(half))
        same = embedding_size == half
        self.voice_projection = nn.Identity() if same else nn.Linear(embedding_size, half, bias=False)
        self.register_buffer("centre", torch.zeros(embedding_size))
        self.empty = nn.Parameter(torch.zeros(half))  # stands in a slot without speaker
        self.backend = Backend(settings)
        self.hears_gradients = True
        row = frontend.shift_samples / frontend.rows_per_shift / frontend.sample_rate
        whole_windows = frontend.kind == "fbank" and not frontend.centred
        width = frontend.window_samples / frontend.sample_rate if whole_windows else 0.0
        self.window = max(settings.average, round(settings.window / (row * stride)))
        self.frames = Frames(row * stride * settings.average, width / 2 + row * (stride * settings.average - 1) / 2)
        shortest = frontend.row_samples(encoder.min_frames + stride * settings.average)
        self.min_samples = max(frontend.min_samples, shortest)

    def forward(self, samples: Tensor, voices: Tensor) -> Tensor:
        """Samples (B, N) in [-1, 1] and embeddings (B, k, D), zeros for an empty slot, to logits (B, T, k)."""
        with torch.set_grad_enabled(self.hears_gradients and torch.is_grad_enabled()):
            features = self.encoder.frame_features(self.fbank(samples))  # (batch, encoder's frames, dim)
            if self.settings.window:
                features = self._local_embeddings(features)
            elif self.settings.average > 1:
                features = F.avg_pool1d(features.transpose(1, 2), self.settings.average).transpose(1, 2)
        frames = self._projected(features) if self.settings.window else self.frame_projection(features)
        given = voices.any(dim=2, keepdim=True)
        return self.backend(frames, torch.where(given, self._projected(voices), self.empty))

    def _projected(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, n, D) to (B, n, d / 2), their length being nothing."""
        directions = F.normalize(embeddings - self.centre, dim=2) * math.sqrt(embeddings.shape[2])
        return self.voice_projection(directions)

    def _local_embeddings(self, features: Tensor) -> Tensor:
        """Features of frames (B, T', D') to embeddings (B, T, D) of the window around each ``average`` of them."""
        hop = self.settings.average
        before = (self.window - hop) // 2
        padded = F.pad(features.transpose(1, 2), (before, self.window - hop - before), mode="replicate")
        windows = padded.unfold(2, self.window, hop).permute(0, 2, 3, 1)  # (batch, T, window, D')
        return self.encoder.embed_frames(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])

    def train(self, mode: bool = True) -> TSVAD:
        """As in torch; an encoder that is not trained stays in evaluation."""
        super().train(mode)
        self.encoder.train(mode and self.hears_gradients)
        return self

    def listen(self, hears_gradients: bool) -> None:
        """Train the encoder from now on, or leave it as it is."""
        if hears_gradients != self.hears_gradients:
            self.hears_gradients = hears_gradients
            self.encoder.train(self.training and hears_gradients)


def _frame_geometry(encoder: Backbone, frontend: FrontEnd, embeds: bool) -> tuple[int, int]:
    """Values of a frame of the encoder, and rows of features between its frames; takes out what is not needed.

    Args:
        embeds: whether embeddings of frames are wanted, not their features alone.
    """
    rows = PROBE * frontend.rows_per_shift
    training = encoder.training
    encoder.eval()
    try:
        probe = torch.randn(1, 2 * rows, frontend.feature_dim, generator=torch.Generator().manual_seed(0))
        longer = encoder.frame_features(probe)
        used = encoder.embed_frames(longer) if embeds else longer
        with torch.no_grad():
            shorter = encoder.frame_features(probe[:, :rows])
    except NotImplementedError:
        name = type(encoder).__name__
        raise ConfigError("embedder", f"{name} gives no features of frames", "take an ECAPA-TDNN or a ResNet") from None
    if torch.is_grad_enabled():
        needed = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(used.square().sum(), needed, allow_unused=True)
        for parameter, gradient in zip(needed, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
    encoder.train(training)
    return longer.shape[2], round(rows / (longer.shape[1] - shorter.shape[1]))
