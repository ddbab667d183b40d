"""Metric losses: embeddings of a batch against one another, or against the centre of their class.

Classes are told apart by the labels alone, so that a batch need not be exactly P speakers x K utterances: an utterance
that is the only one of its speaker is left out where the loss has no use for it, and a batch without a pair to compare
has the loss 0 and gradients of 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.embedding.objective import HEADS, Objective, full_precision, number_above, one_of, true_or_false


class MetricLoss(Objective):
    """What losses without classes share: built like a head, whose sizes they do not need."""

    compares = True

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__()

    @full_precision
    def loss_and_scores(self, embedding: Tensor, label: Tensor) -> tuple[Tensor, None]:
        return self.loss(embedding, label), None

    def loss(self, embedding: Tensor, label: Tensor) -> Tensor:
        """The loss of embeddings (B, D) in float32 or better, with labels (B,)."""
        raise NotImplementedError


def mean_or_zero(losses: Tensor) -> Tensor:
    """Mean of losses (N,); 0 where there are none."""
    return losses.sum() / max(len(losses), 1)


def cross_entropies(logits: Tensor, true: Tensor) -> Tensor:
    """-log softmax at the true columns, (N, C) and (N,) to (N,), also for N = 0."""
    return -F.log_softmax(logits, dim=1).gather(1, true.unsqueeze(1)).squeeze(1)


@HEADS.register("triplet")
class Triplet(MetricLoss):
    """Triplet loss [m + d(a, p) - d(a, n)]_+ on the distances of length-normalised embeddings, from 0 to 2.

    Args:
        mining: "hard" takes for each anchor its farthest positive and nearest negative (Hermans et al. 2017,
            1703.07737, eq. 5); "semi-hard" takes each positive, with the nearest negative that is farther than it, or
            the farthest of all where none is (Schroff et al. 2015, "FaceNet", 1503.03832).
        soft: log(1 + exp(d(a, p) - d(a, n))) instead, without margin (Hermans et al., section 2).
        margin: m.
    """

    def __init__(
        self, embed_dim: int, num_classes: int, mining: str = "hard", soft: bool = False, margin: float = 0.2
    ) -> None:
        super().__init__(embed_dim, num_classes)
        self.mining, self.soft = one_of(("hard", "semi-hard"), "mining", mining), true_or_false("soft", soft)
        self.margin = None if soft else 0.0
        self.update(margin)

    def loss(self, embedding: Tensor, label: Tensor) -> Tensor:
        embedding = F.normalize(embedding)
        distance = torch.cdist(embedding, embedding, compute_mode="donot_use_mm_for_euclid_dist")  # (B, B)
        same = label.unsqueeze(0) == label.unsqueeze(1)
        positive = same & ~torch.eye(len(label), dtype=torch.bool, device=label.device)
        far, near = (hardest if self.mining == "hard" else semi_hard)(distance, positive, ~same)
        if self.soft:
            return mean_or_zero(F.softplus(far - near))
        margin = self.margin if self.training and self.margin else 0.0
        return mean_or_zero(F.relu(far - near + margin))


def hardest(distance: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Of each anchor that has both: the distances to its farthest positive and its nearest negative, twice (N,).

    Args:
        distance: (B, B), of anchors in rows.
        positive, negative: (B, B), which pairs are of one speaker, and of two.
    """
    complete = positive.any(dim=1) & negative.any(dim=1)
    distance, positive, negative = distance[complete], positive[complete], negative[complete]
    return (
        distance.masked_fill(~positive, -math.inf).amax(dim=1),
        distance.masked_fill(~negative, math.inf).amin(dim=1),
    )


def semi_hard(distance: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Of each pair of one speaker: its distance, and that of the negative that FaceNet would take, twice (N,).

    Arguments as of :func:`hardest`.
    """
    anchor, partner = (positive & negative.any(dim=1, keepdim=True)).nonzero(as_tuple=True)
    far = distance[anchor, partner]
    distance, negative = distance[anchor], negative[anchor]  # (N, B)
    beyond = negative & (distance > far.unsqueeze(1))
    nearest = distance.masked_fill(~beyond, math.inf).amin(dim=1)
    farthest = distance.masked_fill(~negative, -math.inf).amax(dim=1)
    return far, torch.where(beyond.any(dim=1), nearest, farthest)


def queries_and_prototypes(embedding: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Of each class that has two utterances or more: the last, and the mean of the others, twice (P, D)."""
    classes, index, count = label.unique(return_inverse=True, return_counts=True)
    position = torch.arange(len(label), device=label.device)
    last = torch.zeros_like(classes).scatter_reduce(0, index, position, "amax")
    support = position != last[index]
    prototype = torch.zeros(len(classes), embedding.shape[1], dtype=embedding.dtype, device=embedding.device)
    prototype = prototype.index_add(0, index[support], embedding[support])
    several = count > 1
    return embedding[last[several]], prototype[several] / (count[several] - 1).unsqueeze(1)


@HEADS.register("prototypical")
class Prototypical(MetricLoss):
    """Prototypical loss (Snell et al. 2017, 1703.05175) as Chung et al. 2020, 2003.11982, section 2.2, use it: the last
    utterance of each speaker is told apart by its squared distances from the mean of the others of every speaker."""

    def loss(self, embedding: Tensor, label: Tensor) -> Tensor:
        query, prototype = queries_and_prototypes(embedding, label)
        logits = -(query.unsqueeze(1) - prototype.unsqueeze(0)).square().sum(dim=2)  # (P, P)
        return mean_or_zero(cross_entropies(logits, torch.arange(len(logits), device=logits.device)))


class ScaledCosineLoss(MetricLoss):
    """What losses of w cos + b share: w and b are learnt, w = log(1 + exp(``w``)) to stay above 0.

    Args:
        w, b: initial values, as in both papers.
    """

    def __init__(self, embed_dim: int, num_classes: int, w: float = 10.0, b: float = -5.0) -> None:
        super().__init__(embed_dim, num_classes)
        number_above(0, "w", w)
        number_above(-math.inf, "b", b)
        self.w = nn.Parameter(torch.tensor(w + math.log(-math.expm1(-w))))
        self.b = nn.Parameter(torch.tensor(float(b)))

    def scaled(self, cosine: Tensor) -> Tensor:
        """w cos + b."""
        return F.softplus(self.w.to(cosine.dtype)) * cosine + self.b.to(cosine.dtype)


@HEADS.register("angular_prototypical")
class AngularPrototypical(ScaledCosineLoss):
    """Angular prototypical loss (Chung et al. 2020, 2003.11982, section 2.2): the prototypical loss on w cos + b."""

    def loss(self, embedding: Tensor, label: Tensor) -> Tensor:
        query, prototype = queries_and_prototypes(embedding, label)
        logits = self.scaled(F.linear(F.normalize(query), F.normalize(prototype)))  # (P, P)
        return mean_or_zero(cross_entropies(logits, torch.arange(len(logits), device=logits.device)))


@HEADS.register("ge2e")
class GE2E(ScaledCosineLoss):
    """Generalised end-to-end loss (Wan et al. 2018, 1710.10467): every utterance against the centroids of all speakers
    by w cos + b, against its own speaker's without itself (eq. 8, 9), averaged over the utterances.

    Args:
        kind: "softmax" (eq. 6), or "contrast" (eq. 7): 1 - sigmoid of the own speaker + the largest of the others.
    """

    def __init__(
        self, embed_dim: int, num_classes: int, kind: str = "softmax", w: float = 10.0, b: float = -5.0
    ) -> None:
        super().__init__(embed_dim, num_classes, w, b)
        self.kind = one_of(("softmax", "contrast"), "kind", kind)

    def loss(self, embedding: Tensor, label: Tensor) -> Tensor:
        logits, own = self.similarities(F.normalize(embedding), label)
        if self.kind == "softmax":
            return mean_or_zero(cross_entropies(logits, own))
        own = own.unsqueeze(1)
        others = logits.scatter(1, own, -math.inf)
        highest = F.pad(others, (0, 1), value=-math.inf).amax(dim=1)  # there may be no others
        return mean_or_zero(1 - logits.gather(1, own).squeeze(1).sigmoid() + highest.sigmoid())

    def similarities(self, embedding: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Of the N utterances whose speaker has several: w cos + b to the P centroids (N, P), and their own's place."""
        _, index, count = label.unique(return_inverse=True, return_counts=True)
        several = count[index] > 1
        embedding = embedding[several]
        classes, index = label[several].unique(return_inverse=True)
        total = torch.zeros(len(classes), embedding.shape[1], dtype=embedding.dtype, device=embedding.device)
        total = total.index_add(0, index, embedding)  # a centroid's length has no part in its cosines
        cosine = F.linear(embedding, F.normalize(total))  # (N, P)
        without = F.cosine_similarity(embedding, total[index] - embedding, dim=1)
        return self.scaled(cosine.scatter(1, index.unsqueeze(1), without.unsqueeze(1))), index


@HEADS.register("centre")
class Centre(Objective):
    """Centre loss (Wen et al. 2016, "A discriminative feature learning approach", eq. 2): weight / 2 times the mean
    squared distance of the embeddings from the centres of their classes. It tells none apart: to be joined to a head.

    The gradient of a centre c of n embeddings x is sum(c - x) / (1 + n) whatever the weight (eq. 4), so that the
    optimiser's learning rate stands for the paper's alpha.

    Args:
        weight: lambda.
        normalise: draw length-normalised embeddings together; beside a head of cosines, which lets lengths shrink
            without loss, that is what is wanted.
    """

    def __init__(self, embed_dim: int, num_classes: int, weight: float = 0.003, normalise: bool = False) -> None:
        super().__init__()
        self.weight, self.normalise = number_above(0, "weight", weight), true_or_false("normalise", normalise)
        self.centres = nn.Parameter(torch.empty(num_classes, embed_dim))
        nn.init.xavier_uniform_(self.centres)

    @full_precision
    def loss_and_scores(self, embedding: Tensor, label: Tensor) -> tuple[Tensor, None]:
        if self.normalise:
            embedding = F.normalize(embedding)
        centre = self.centres.to(embedding.dtype)[label]  # (B, D)
        count = torch.bincount(label, minlength=len(self.centres))[label].unsqueeze(1)
        rate = len(label) / (self.weight * (1 + count))  # of the gradient only: the value is that of the centre
        centre = centre.detach() + rate * (centre - centre.detach())
        return self.weight / 2 * (embedding - centre).square().sum(dim=1).mean(), None
