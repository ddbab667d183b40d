"""How a voice steers a layer: one module for every model that is told whom to hear."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speakerkit.errors import ConfigError
from speakerkit.registry import suggest

KINDS = ("concatenate", "add", "multiply", "film")


class Conditioning(nn.Module):
    """A voice enters the features of a layer, the same at each of their positions; one such module for each layer.

    Args:
        kind: what becomes of features x and voice v, where each linear map of v has weights of its own:
            ``concatenate``: [x; v], C + D features; ``add``: x + a(v); ``multiply``: m(v) x;
            ``film``: m(v) x + a(v) (Perez et al. 2018, 1709.07871). The maps' biases start at a = 0 and m = 1.
        features: C.
        voice_size: D.

    Attributes:
        out_features: C', the features that come out.

    Raises:
        ConfigError: the kind is unknown, or the voice has no size.
    """

    def __init__(self, kind: str, features: int, voice_size: int) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ConfigError(f"conditioning {kind!r}", "is not known", suggest(kind, list(KINDS)))
        if voice_size < 1:
            raise ConfigError("voice_size", f"is {voice_size}", "give the length of the embeddings")
        self.kind = kind
        self.out_features = features + voice_size if kind == "concatenate" else features
        if kind in ("multiply", "film"):
            self.scale = _linear(voice_size, features, 1.0)
        if kind in ("add", "film"):
            self.shift = _linear(voice_size, features, 0.0)

    def forward(self, x: Tensor, voice: Tensor) -> Tensor:
        """Features (N, C, *) and voices (N, D) to (N, C', *)."""
        positions = (1,) * (x.ndim - 2)
        if self.kind == "concatenate":
            return torch.cat([x, voice.view(*voice.shape, *positions).expand(-1, -1, *x.shape[2:])], dim=1)
        if self.kind in ("multiply", "film"):
            x = x * self.scale(voice).unflatten(1, (-1, *positions))
        if self.kind in ("add", "film"):
            x = x + self.shift(voice).unflatten(1, (-1, *positions))
        return x


def _linear(voice_size: int, features: int, bias: float) -> nn.Linear:
    layer = nn.Linear(voice_size, features)
    nn.init.constant_(layer.bias, bias)
    return layer


def for_each_voice(x: Tensor, voices: Tensor) -> tuple[Tensor, Tensor]:
    """What B mixtures (B, *) share, repeated for each of their voices (B, K, D): (B * K, *) and (B * K, D)."""
    return x.unsqueeze(1).expand(-1, voices.shape[1], *x.shape[1:]).flatten(0, 1), voices.flatten(0, 1)
