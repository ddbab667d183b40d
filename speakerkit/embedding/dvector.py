"""The d-vector: a recurrent network whose last output is the embedding (Wan et al. 2018, 1710.10467)."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.embedding.registry import Backbone, register_backbone
from speakerkit.errors import ConfigError

warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")  # slower, but right


PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def lstm_outputs(lstm: nn.LSTM, x: Tensor) -> Tensor:
    """Outputs of the last layer of an LSTM with projections, from a zero state: (B, T, F) to (B, T, proj_size)."""
    return _onnx_lstm(lstm, x) if torch.onnx.is_in_onnx_export() else lstm(x)[0]


def _onnx_lstm(lstm: nn.LSTM, x: Tensor) -> Tensor:
    # ONNX knows no projected LSTM, and the exporter would unroll one over the example's frames. The projection is
    # linear: with W_hh W_hr for recurrent weights and W_hr applied to the output it is the plain LSTM of ONNX.
    x = x.transpose(0, 1)  # (frames, batch, features)
    frames, batch, _ = x.shape
    for layer in range(lstm.num_layers):
        w_ih, w_hh, b_ih, b_hh, w_hr = (getattr(lstm, f"{name}_l{layer}") for name in PARAMETERS)
        hidden = torch.onnx.ops.symbolic(
            "LSTM",
            (x, _onnx_gates(w_ih), _onnx_gates(w_hh @ w_hr), torch.cat((_onnx_gates(b_ih), _onnx_gates(b_hh)), dim=1)),
            {"hidden_size": lstm.hidden_size},
            dtype=x.dtype,
            shape=(frames, 1, batch, lstm.hidden_size),
        )
        x = F.linear(hidden.squeeze(1), w_hr)
    return x.transpose(0, 1)


def _onnx_gates(x: Tensor) -> Tensor:
    """Rows of the gates input, forget, cell, output to (1, rows, ...) of input, output, forget, cell."""
    gates = x.unflatten(0, (4, -1))
    return torch.cat((gates[:1], gates[3:], gates[1:3])).flatten(0, 1).unsqueeze(0)


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
