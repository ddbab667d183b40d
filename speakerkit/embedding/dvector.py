"""The d-vector: a recurrent network whose last output is the embedding (Wan et al. 2018, 1710.10467)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.embedding.registry import Backbone, register_backbone
from speakerkit.errors import ConfigError
from speakerkit.nn.lstm import lstm_outputs


@register_backbone("DVECTOR")
class DVector(Backbone):
    """LSTM layers, a linear layer of the last frame, L2 normalisation (eq. 4 of the paper).

    An utterance longer than ``window`` is cut into windows that overlap by half (section 3.2); its embedding is the
    normalised mean of theirs. The last window ends with the utterance, so that every frame is heard. The state starts
    from zero in every window; nothing is kept between calls.

    Args:
        feat_dim: F, mel bands.
        embed_dim: D.
        hidden_dim: cells of one LSTM layer.
        proj_dim: length of a layer's projected output.
        layers: LSTM layers.
        window: frames of one window; the paper trains on 140 to 180 frames.

    Raises:
        ConfigError: a window of fewer than two frames, or a projection as wide as its layer.
    """

    def __init__(
        self,
        feat_dim: int = 80,
        embed_dim: int = 256,
        hidden_dim: int = 768,
        proj_dim: int = 256,
        layers: int = 3,
        window: int = 160,
    ) -> None:
        super().__init__()
        if window < 2:
            raise ConfigError("window", f"is {window}", "choose at least two frames")
        if not 0 < proj_dim < hidden_dim:
            raise ConfigError("proj_dim", f"is {proj_dim}", f"choose one from 1 to {hidden_dim - 1}, below hidden_dim")
        self.feat_dim = feat_dim
        self.embed_dim = embed_dim
        self.min_frames = 2
        self.window = window

        self.lstm = nn.LSTM(feat_dim, hidden_dim, layers, batch_first=True, proj_size=proj_dim)
        self.linear = nn.Linear(proj_dim, embed_dim)

    def forward(self, feats: Tensor) -> Tensor:
        cut = windows(feats, self.window)  # (batch, windows, at most window, feat_dim)
        last = lstm_outputs(self.lstm, cut.flatten(0, 1))[:, -1]
        dvectors = F.normalize(self.linear(last), dim=-1).unflatten(0, cut.shape[:2])
        return F.normalize(dvectors.mean(1), dim=-1)  # (batch, embed_dim)

    def frame_features(self, feats: Tensor) -> Tensor:
        """(B, T, feat_dim) to (B, T, proj_dim): the outputs of the last layer over the whole utterance."""
        return lstm_outputs(self.lstm, feats)


def windows(x: Tensor, size: int) -> Tensor:
    """Windows that overlap by half, (B, T, F) to (B, W, min(T, size), F); the last one ends with x."""
    frames = x.shape[1]
    hop = size // 2
    length = torch.sym_min(frames, size)
    starts = hop * torch.arange((frames - length + hop - 1) // hop + 1, device=x.device)
    starts = starts.clamp(max=frames - length)
    return x[:, starts.unsqueeze(1) + torch.arange(length, device=x.device)]
