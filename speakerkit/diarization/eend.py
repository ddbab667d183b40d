"""EEND-EDA: end-to-end diarization with attractors of an LSTM encoder-decoder (Horiguchi et al. 2020, 2022).

Papers: 2005.09921, 2106.10654. How many speakers there are need not be known.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.diarization.activity import Frames
from speakerkit.diarization.config import EENDSettings
from speakerkit.features import FrontEnd
from speakerkit.nn.fbank import Fbank


class Attractors(nn.Module):
    """Embeddings of frames to attractors, one after another, and the logits of whether each stands for a speaker."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.encoder = nn.LSTM(size, size, batch_first=True)
        self.decoder = nn.LSTM(size, size, batch_first=True)
        self.existence = nn.Linear(size, 1)

    def forward(self, embeddings: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Embeddings (B, T, D), in any order of the frames, to ``count`` attractors (B, S, D) and logits (B, S)."""
        _, state = self.encoder(embeddings)
        zeros = embeddings.new_zeros(embeddings.shape[0], count, embeddings.shape[2])
        attractors, _ = self.decoder(zeros, state)
        return attractors, self.existence(attractors).squeeze(2)


class EEND(nn.Module):
    """Speech to logits of activity: 6.40 M values at the papers' sizes, for any number of speakers.

    Attributes:
        frames: where the frames of the output lie.
        min_samples: the shortest input.
    """

    def __init__(self, frontend: FrontEnd, settings: EENDSettings) -> None:
        super().__init__()
        self.settings = settings
        self.fbank = Fbank(frontend)
        self.input = nn.Linear((2 * settings.context + 1) * frontend.num_mels, settings.size)
        layer = nn.TransformerEncoderLayer(
            settings.size,
            settings.heads,
            settings.feed_forward,
            settings.dropout,
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(
            layer, settings.layers, norm=nn.LayerNorm(settings.size), enable_nested_tensor=False
        )
        self.attractors = Attractors(settings.size)
        width = 0.0 if frontend.centred else frontend.window_samples / frontend.sample_rate
        self.frames = Frames(settings.subsampling * frontend.shift_samples / frontend.sample_rate, width / 2)
        self.min_samples = frontend.min_samples

    def embed(self, samples: Tensor) -> Tensor:
        """Samples (B, N) in [-1, 1] to embeddings of frames (B, T, D)."""
        context, subsampling = self.settings.context, self.settings.subsampling
        features = F.pad(self.fbank(samples).transpose(1, 2), (context, context))  # (batch, mels, frames)
        stacked = features.unfold(2, 2 * context + 1, subsampling)  # (batch, mels, T, 2 * context + 1)
        return self.encoder(self.input(stacked.transpose(1, 2).flatten(2)))

    def forward(self, samples: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Samples (B, N) to the logits of activity of ``count`` speakers (B, T, S) and of their existence (B, S).

        The LSTM hears the frames in an order drawn from torch's seed in training, in one fixed order in evaluation: in
        their own, it would remember the end best.
        """
        embeddings = self.embed(samples)
        frames = embeddings.shape[1]
        chance = None if self.training else torch.Generator().manual_seed(0)
        order = torch.randperm(frames, generator=chance).to(embeddings.device)
        attractors, existence = self.attractors(embeddings[:, order], count)
        return embeddings @ attractors.transpose(1, 2), existence


def pair_costs(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy of each output (T, S) to each speaker's labels (T, S), as (outputs, speakers)."""
    return F.softplus(logits).mean(dim=0)[:, None] - logits.T @ labels / len(logits)


def best_order(costs: Tensor) -> list[int]:
    """The output for each speaker that makes the sum of (outputs, speakers) costs least, by the Hungarian method."""
    _, outputs = linear_sum_assignment(costs.detach().double().cpu().numpy().T)
    return outputs.tolist()


def permutation_free_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, list[int]]:
    """The least mean binary cross-entropy of logits to labels, (T, S) each, over orders; and each speaker's output."""
    costs = pair_costs(logits, labels)
    order = best_order(costs)
    return costs[order, range(len(order))].mean(), order


def existence_loss(logits: Tensor, count: int) -> Tensor:
    """Mean binary cross-entropy of the first ``count`` + 1 attractors' logits (S,) to 1, ..., 1, 0."""
    wanted = torch.ones_like(logits[: count + 1])
    wanted[-1] = 0
    return F.binary_cross_entropy_with_logits(logits[: count + 1], wanted)
