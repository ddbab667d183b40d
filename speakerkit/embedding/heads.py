"""Classification heads for training: linear softmax, additive margin, additive angular margin.

The parameter is ``weight`` (classes, D). Logits are computed in float32 also under autocast: in half precision, cosines
near one cannot be told apart.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.errors import ConfigError
from speakerkit.registry import Registry

SMALLEST_SINE_SQUARED = 1e-7  # the root's gradient is infinite at zero


class Head(nn.Module):
    """What all heads share: ``forward(embedding (B, D), label (B,)) -> logits (B, C)`` for the cross-entropy.

    Args:
        embed_dim: D.
        num_classes: C.
        scale: s, multiplies the cosines.
        margin: m, what the true class has to do better by; ``update`` changes it during training.
    """

    def __init__(self, embed_dim: int, num_classes: int, scale: float = 32.0, margin: float = 0.2) -> None:
        super().__init__()
        if not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
            raise ConfigError("head.args", f"scale is {scale!r}", "it is a number above 0")
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(num_classes, embed_dim))
        nn.init.xavier_uniform_(self.weight)
        self.update(margin)

    def update(self, margin: float) -> None:
        """Set the margin; 0 <= margin < pi / 2."""
        if not 0 <= margin < math.pi / 2:
            raise ConfigError("margin", f"is {margin}", "choose one from 0 to below pi / 2")
        self.margin = margin

    def cosine(self, embedding: Tensor) -> Tensor:
        """Cosines of embeddings and class weights without margin, (B, D) to (B, C)."""
        embedding = _float32(embedding)
        with torch.autocast(embedding.device.type, enabled=False):
            return F.linear(F.normalize(embedding), F.normalize(self.weight.to(embedding.dtype)))

    def scores(self, embedding: Tensor) -> Tensor:
        """Logits without margin, (B, D) to (B, C): the class an embedding is taken for is the largest."""
        return self.scale * self.cosine(embedding)

    def forward(self, embedding: Tensor, label: Tensor) -> Tensor:
        cosine = self.cosine(embedding)
        true = label.unsqueeze(1)
        return self.scale * cosine.scatter(1, true, self.with_margin(cosine.gather(1, true)))

    def with_margin(self, cosine: Tensor) -> Tensor:
        """The cosines of the true classes, made worse by the margin."""
        raise NotImplementedError


HEADS: Registry[type[Head]] = Registry("head")


def _float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


@HEADS.register("softmax")
class Softmax(Head):
    """A linear layer with bias: no scale (it is 1) and no margin (``update`` has no effect on the logits)."""

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__(embed_dim, num_classes, scale=1.0, margin=0.0)
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def scores(self, embedding: Tensor) -> Tensor:
        embedding = _float32(embedding)
        with torch.autocast(embedding.device.type, enabled=False):
            return F.linear(embedding, self.weight.to(embedding.dtype), self.bias.to(embedding.dtype))

    def forward(self, embedding: Tensor, label: Tensor) -> Tensor:
        return self.scores(embedding)


@HEADS.register("add_margin")
class AddMargin(Head):
    """AM-softmax (Wang et al. 2018, 1801.05599): s (cos theta - m) for the true class, s cos theta for the others."""

    def with_margin(self, cosine: Tensor) -> Tensor:
        return cosine - self.margin


@HEADS.register("arc_margin")
class ArcMargin(Head):
    """AAM-softmax (Deng et al. 2019, "ArcFace", 1801.07698, eq. 3): s cos(theta + m) for the true class.

    Beyond theta = pi - m, where cos(theta + m) would rise again, it goes on as cos theta - (1 + cos(pi - m)), which
    meets it at -1.
    """

    def with_margin(self, cosine: Tensor) -> Tensor:
        sine = (1 - cosine.square()).clamp(min=SMALLEST_SINE_SQUARED).sqrt()
        moved = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        turning = math.cos(math.pi - self.margin)
        return torch.where(cosine > turning, moved, cosine - (1 + turning))
