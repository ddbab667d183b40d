"""Classification heads whose classes are split over the ranks: each computes the embeddings of all against its own.

This is the model-parallel softmax of An et al. 2021 ("Partial FC", 2010.05222, section 3.1) over all classes, without
their sampling of some. Loss and gradients are those of the whole head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from speakerkit.config import NamedConfig
from speakerkit.embedding.heads import (
    AddMargin,
    ArcMargin,
    Classifier,
    Head,
    Softmax,
    Sphere,
    SubcenterArcMargin,
    nearer,
)
from speakerkit.embedding.joint import build_head, require_arguments
from speakerkit.embedding.objective import HEADS, Objective, full_precision
from speakerkit.errors import ConfigError
from speakerkit.nn.sharding import Sharded, Share, best_class, cross_entropy, gather_batch, gathered, place_of

BLOCK = 4096  # rows that are drawn at a time to be passed over


class ShardedClassifier(Sharded, Classifier):
    """A rank's share of a head; its ``weight`` and ``bias`` begin with the values that the whole one would have.

    ``loss_and_scores`` takes the embeddings and labels of this rank's batch (B), as many as on any other. The loss is
    that of the batches of all ranks, (ranks x B), and the scores are theirs for this rank's classes.

    Args:
        share: which classes of how many.
        args: those of the head.
    """

    def __init__(self, embed_dim: int, share: Share, **args: Any) -> None:
        self.share = share
        super().__init__(embed_dim, share.count, **args)

    def drawn(self, rows: int, embed_dim: int) -> Tensor:
        """This rank's rows of those that Glorot's rule draws for the whole head, which is never there as a whole."""
        per_class = rows // self.share.count
        own, total = self.share.rows(per_class), self.share.total * per_class
        bound = math.sqrt(3.0) * math.sqrt(2.0 / (total + embed_dim))
        _pass_over(own.start, embed_dim)
        weight = torch.empty(rows, embed_dim).uniform_(-bound, bound)
        _pass_over(total - own.stop, embed_dim)
        return weight

    @torch.compiler.disable
    @full_precision
    def loss_and_scores(self, embedding: Tensor, label: Tensor) -> tuple[Tensor, Tensor | None]:
        device = self.weight.device  # that of the embeddings, but for a whole head that only validates
        embedding, label = embedding.to(device), label.to(device)
        if self.share.size > 1:
            embedding, label = gather_batch(embedding, self.share), gathered(label, self.share.size)
        return super().loss_and_scores(embedding, label)

    def loss_of(self, logits: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(logits, label, self.share) if self.share.size > 1 else super().loss_of(logits, label)

    def correct(self, scores: Tensor, label: Tensor) -> Tensor:
        """As :meth:`Objective.correct`, for this rank's batch among those of all."""
        if self.share.size == 1:
            return super().correct(scores, label.to(scores.device))
        return best_class(scores, self.share).chunk(self.share.size)[self.share.rank] == label


def _pass_over(rows: int, dim: int) -> None:
    """Draw and forget: torch's generator goes on as if these rows had been drawn with the others."""
    block = torch.empty(min(rows, BLOCK), dim)
    for first in range(0, rows, BLOCK):
        block[: rows - first].uniform_()


class ShardedSoftmax(ShardedClassifier, Softmax):
    """A share of ``softmax``."""


class ShardedHead(ShardedClassifier, Head):
    """A share of a head of cosines: the margin acts where the true class is."""

    def margined(self, cosine: Tensor, label: Tensor) -> Tensor:
        place, mine = place_of(label, self.share)
        there = cosine.gather(1, place)
        return cosine.scatter(1, place, torch.where(mine, self.with_margin(there), there))


class ShardedAddMargin(ShardedHead, AddMargin):
    """A share of ``add_margin``."""


class ShardedArcMargin(ShardedHead, ArcMargin):
    """A share of ``arc_margin``."""


class ShardedSphere(ShardedHead, Sphere):
    """A share of ``sphere``."""


class ShardedSubcenterArcMargin(ShardedHead, SubcenterArcMargin):
    """A share of ``arc_margin_intertopk_subcenter``: the nearest others are found among the classes of all ranks."""

    def margined(self, cosine: Tensor, label: Tensor) -> Tensor:
        margined = super().margined(cosine, label)
        count = min(self.k_top, self.share.total - 1)
        if not count or not self.penalty:
            return margined
        place, mine = place_of(label, self.share)
        others = cosine.detach()
        others = others.scatter(1, place, torch.where(mine, -math.inf, others.gather(1, place)))
        best, nearest = others.topk(min(count, self.share.count))  # (N, at most k_top)
        chosen = self._among_nearest(best, count)
        penalised = nearer(cosine.gather(1, nearest), self.penalty)
        return margined.scatter(1, nearest, torch.where(chosen, penalised, margined.gather(1, nearest)))

    def _among_nearest(self, best: Tensor, count: int) -> Tensor:
        """Which of this rank's highest cosines (N, at most count) are among the ``count`` highest of all ranks."""
        if self.share.size == 1:
            return torch.ones_like(best, dtype=torch.bool)
        padded = F.pad(best, (0, count - best.shape[1]), value=-math.inf)
        candidates = gathered(padded[None], self.share.size).transpose(0, 1).flatten(1)  # (N, ranks x count)
        chosen = torch.zeros_like(candidates, dtype=torch.bool).scatter(1, candidates.topk(count).indices, True)
        return chosen.unflatten(1, (self.share.size, count))[:, self.share.rank, : best.shape[1]]


SHARDED: dict[str, type[ShardedClassifier]] = {
    "softmax": ShardedSoftmax,
    "add_margin": ShardedAddMargin,
    "arc_margin": ShardedArcMargin,
    "arc_margin_intertopk_subcenter": ShardedSubcenterArcMargin,
    "sphere": ShardedSphere,
}


def build_sharded_head(config: NamedConfig, embed_dim: int, num_classes: int) -> Objective:
    """This rank's share of the head that a configuration names; the plain one where there are no other ranks.

    Raises:
        ConfigError: no such head, one that cannot be split, arguments that it does not take, or too few classes.
    """
    HEADS[config.name]  # an unknown one is said to be that
    if config.name not in SHARDED:
        raise ConfigError("head_shards", f"{config.name} cannot be split", f"heads that can: {', '.join(SHARDED)}")
    size = dist.get_world_size() if dist.is_initialized() else 1
    if size == 1:
        return build_head(config, embed_dim, num_classes)
    if num_classes < size:
        raise ConfigError("head_shards", f"{num_classes} classes leave one of {size} ranks none", "set it to false")
    require_arguments(config)
    return SHARDED[config.name](embed_dim, Share(num_classes, dist.get_rank(), size), **config.args)
