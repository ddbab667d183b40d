"""Classification heads: linear softmax, and classes as directions that a margin keeps apart.

The parameter is ``weight`` (classes, D). Of a class, only ``Head.with_margin`` changes the true one's cosine, element
by element: it does not mind on which device the other classes are (see :mod:`speakerkit.embedding.sharded`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.embedding.objective import (
    HEADS,
    Objective,
    full_precision,
    number_above,
    one_of,
    true_or_false,
    whole_number,
)
from speakerkit.errors import ConfigError

SMALLEST_SINE_SQUARED = 1e-7  # the root's gradient is infinite at zero
REFERENCE_MARGIN = 0.2  # at which the inter-top-k penalty is ``mp``


class Classifier(Objective):
    """What heads with one logit for each class share: rows drawn at random, and the cross-entropy."""

    classifies = True
    weight: nn.Parameter

    def drawn(self, rows: int, embed_dim: int) -> Tensor:
        """Random rows of ``weight``, (rows, D)."""
        return nn.init.xavier_uniform_(torch.empty(rows, embed_dim))

    def loss_of(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of logits (B, C)."""
        return F.cross_entropy(logits, label)


@HEADS.register("softmax")
class Softmax(Classifier):
    """A linear layer with bias and the cross-entropy: no margin."""

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(self.drawn(num_classes, embed_dim))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    @full_precision
    def scores(self, embedding: Tensor) -> Tensor:
        return F.linear(embedding, self.weight.to(embedding.dtype), self.bias.to(embedding.dtype))

    @full_precision
    def loss_and_scores(self, embedding: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.scores(embedding)
        return self.loss_of(scores, label), scores


class Head(Classifier):
    """What heads of cosines share: s cos theta, worse by a margin for the true class, and the cross-entropy.

    Args:
        embed_dim: D.
        num_classes: C.
        scale: s, multiplies the cosines.
        margin: m, what the true class has to do better by; ``update`` changes it during training.
    """

    margin: float

    def __init__(self, embed_dim: int, num_classes: int, scale: float = 32.0, margin: float = 0.2) -> None:
        super().__init__()
        self.scale = number_above(0, "scale", scale)
        self.weight = nn.Parameter(self.drawn(num_classes, embed_dim))
        self.margin = 0.0
        self.update(margin)

    @full_precision
    def cosine(self, embedding: Tensor) -> Tensor:
        """Cosines of embeddings and classes without margin, (B, D) to (B, C)."""
        return F.linear(F.normalize(embedding), F.normalize(self.weight.to(embedding.dtype)))

    @full_precision
    def scores(self, embedding: Tensor) -> Tensor:
        return self.scaled(self.cosine(embedding), embedding)

    @full_precision
    def logits(self, embedding: Tensor, label: Tensor) -> Tensor:
        """Logits with the margin, (B, D) and (B,) to (B, C)."""
        return self.margined_logits(self.cosine(embedding), embedding, label)

    @full_precision
    def loss_and_scores(self, embedding: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        cosine = self.cosine(embedding)
        scores = self.scaled(cosine, embedding)
        logits = self.margined_logits(cosine, embedding, label) if self.training else scores
        return self.loss_of(logits, label), scores

    def scaled(self, cosine: Tensor, embedding: Tensor) -> Tensor:
        """Cosines, with margin or without, to logits (B, C)."""
        return self.scale * cosine

    def margined_logits(self, cosine: Tensor, embedding: Tensor, label: Tensor) -> Tensor:
        """Cosines without margin to logits with it, (B, C)."""
        return self.scaled(self.margined(cosine, label), embedding)

    def margined(self, cosine: Tensor, label: Tensor) -> Tensor:
        """Cosines without margin to cosines with it, (B, C)."""
        true = label.unsqueeze(1)
        return cosine.scatter(1, true, self.with_margin(cosine.gather(1, true)))

    def with_margin(self, cosine: Tensor) -> Tensor:
        """The cosines of the true classes, made worse by the margin."""
        raise NotImplementedError


def farther(cosine: Tensor, angle: float) -> Tensor:
    """cos(theta + angle); from theta = pi - angle on, where it would rise, cos theta - (1 + cos(pi - angle))."""
    turning = math.cos(math.pi - angle)
    moved = cosine * math.cos(angle) - sine(cosine) * math.sin(angle)
    return torch.where(cosine > turning, moved, cosine - (1 + turning))


def nearer(cosine: Tensor, angle: float) -> Tensor:
    """cos(theta - angle); up to theta = angle, where it would rise, cos theta + (1 - cos angle)."""
    turning = math.cos(angle)
    moved = cosine * math.cos(angle) + sine(cosine) * math.sin(angle)
    return torch.where(cosine < turning, moved, cosine + (1 - turning))


def sine(cosine: Tensor) -> Tensor:
    """sin theta, with a finite gradient where it is 0."""
    return (1 - cosine.square()).clamp(min=SMALLEST_SINE_SQUARED).sqrt()


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
        return farther(cosine, self.margin)


@HEADS.register("arc_margin_intertopk_subcenter")
class SubcenterArcMargin(ArcMargin):
    """AAM-softmax with sub-centres (Deng et al. 2020, "Sub-center ArcFace") and the inter-top-k penalty (Zhao et al.
    2022, 2110.05042): s cos(theta + m) for the true class, s cos(theta - m') for the ``k_top`` nearest others.

    A class has the cosine of its nearest sub-centre; those of class c are the rows cK to cK + K - 1 of ``weight``.

    Args:
        K: sub-centres of a class.
        mp: m' at m = 0.2; it grows and falls with m.
        k_top: how many of the other classes are penalised.
        do_lm: no penalty, as for large-margin fine-tuning.
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        scale: float = 32.0,
        margin: float = 0.2,
        K: int = 3,
        mp: float = 0.06,
        k_top: int = 5,
        do_lm: bool = False,
    ) -> None:
        super().__init__(embed_dim, num_classes * whole_number(1, "K", K), scale, margin)
        self.K, self.mp = K, number_above(0, "mp", mp)
        self.k_top = whole_number(0, "k_top", k_top)
        if true_or_false("do_lm", do_lm):
            self.k_top = 0
        if self.mp > REFERENCE_MARGIN:
            raise ConfigError("head.args", f"mp is {mp}", f"it is at most {REFERENCE_MARGIN}, the margin it goes with")

    @full_precision
    def cosine(self, embedding: Tensor) -> Tensor:
        """Cosines of embeddings and their nearest sub-centre of each class without margin, (B, D) to (B, C)."""
        return super().cosine(embedding).unflatten(1, (-1, self.K)).amax(dim=2)

    def margined(self, cosine: Tensor, label: Tensor) -> Tensor:
        margined = super().margined(cosine, label)
        count = min(self.k_top, cosine.shape[1] - 1)
        if not count or not self.penalty:
            return margined
        others = cosine.detach().scatter(1, label.unsqueeze(1), -math.inf)
        nearest = others.topk(count).indices  # (B, k_top)
        return margined.scatter(1, nearest, nearer(cosine.gather(1, nearest), self.penalty))

    @property
    def penalty(self) -> float:
        """m' at the present margin."""
        return self.mp * self.margin / REFERENCE_MARGIN


@HEADS.register("sphere")
class Sphere(Head):
    """A-softmax (Liu et al. 2017, "SphereFace", 1704.08063), annealed: for an embedding x,
    |x| ((1 - a) cos theta + a psi(theta)) for the true class, |x| cos theta for the others.

    psi(theta) = (-1)^k cos(m theta) - 2k for theta from k pi / m to (k + 1) pi / m (eq. 7). The angular margin m does
    not move; what ``update`` sets is the share a = 1 / (1 + lambda) of psi, 0 to 1. The authors lower lambda to 5,
    which is a = 1/6; a = 1 is the paper's loss without annealing.

    Args:
        margin: a.
        m: angular margin.
    """

    def __init__(self, embed_dim: int, num_classes: int, margin: float = 1 / 6, m: int = 4) -> None:
        super().__init__(embed_dim, num_classes, scale=1.0, margin=margin)
        self.m = whole_number(1, "m", m)

    def update(self, margin: float) -> None:
        """Set the share of psi, 0 to 1."""
        if not 0 <= margin <= 1:
            raise ConfigError("margin", f"is {margin}", "for sphere it is the share of psi, from 0 to 1")
        self.margin = margin

    def scaled(self, cosine: Tensor, embedding: Tensor) -> Tensor:
        return embedding.norm(dim=1, keepdim=True) * cosine

    def with_margin(self, cosine: Tensor) -> Tensor:
        return torch.lerp(cosine, self.psi(cosine), self.margin)

    def psi(self, cosine: Tensor) -> Tensor:
        """cos(m theta), made to fall over all of theta from 0 to pi: 1 to 1 - 2m."""
        before, multiple = torch.ones_like(cosine), cosine  # cos(0 theta), cos(1 theta)
        for _ in range(1, self.m):
            before, multiple = multiple, 2 * cosine * multiple - before
        theta = cosine.detach().clamp(-1, 1).acos()
        k = (theta * self.m / math.pi).floor().clamp(max=self.m - 1)
        return (1 - 2 * (k % 2)) * multiple - 2 * k


@HEADS.register("sphereface2")
class SphereFace2(Head):
    """SphereFace2 (Wen et al. 2022, 2108.01513; for speakers Han et al. 2023): one binary classifier for each class.

    Logits z are s g(cos theta) + b, where g(x) = 2 ((x + 1) / 2)^t - 1 spreads the cosines. The loss of an embedding is
    lambda log(1 + e^-z) for its class, and (1 - lambda) log(1 + e^z) summed over the others. All of them have a margin:
    type "C" takes s m from the z of the true class and adds it to the others; type "A" has cos(theta + m) for the
    true class and cos(theta - m) for the others.

    Args:
        margin_type: "C" or "A"; Han et al. train with m = 0.2 for C, 0.15 for A.
        t: exponent of g, from 1 on.
        balance: lambda, from 0 to 1.
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        scale: float = 32.0,
        margin: float = 0.2,
        margin_type: str = "C",
        t: float = 3.0,
        balance: float = 0.7,
    ) -> None:
        super().__init__(embed_dim, num_classes, scale, margin)
        self.bias = nn.Parameter(torch.zeros(1, 1))
        self.margin_type = one_of(("A", "C"), "margin_type", margin_type)
        self.t = number_above(0, "t", t)
        self.balance = number_above(0, "balance", balance)
        if self.t < 1 or self.balance >= 1:
            raise ConfigError("head.args", f"t is {t}, balance {balance}", "t is from 1 on, balance below 1")

    def scaled(self, cosine: Tensor, embedding: Tensor) -> Tensor:
        half = (cosine + 1) / 2
        spread = 2 * half.sign() * half.abs().pow(self.t) - 1  # a margin or rounding takes cosines below -1
        return self.scale * spread + self.bias.to(spread.dtype)

    def margined_logits(self, cosine: Tensor, embedding: Tensor, label: Tensor) -> Tensor:
        if self.margin_type == "A":
            return super().margined_logits(cosine, embedding, label)
        margin = torch.full_like(cosine, self.scale * self.margin)
        return self.scaled(cosine, embedding) + margin.scatter(1, label.unsqueeze(1), -self.scale * self.margin)

    def margined(self, cosine: Tensor, label: Tensor) -> Tensor:
        true = label.unsqueeze(1)
        return nearer(cosine, self.margin).scatter(1, true, self.with_margin(cosine.gather(1, true)))

    def with_margin(self, cosine: Tensor) -> Tensor:
        return farther(cosine, self.margin)

    def loss_of(self, logits: Tensor, label: Tensor) -> Tensor:
        true = label.unsqueeze(1)
        accepted = F.softplus(-logits.gather(1, true))
        rejected = F.softplus(logits).scatter(1, true, 0.0).sum(dim=1, keepdim=True)
        return torch.mean(self.balance * accepted + (1 - self.balance) * rejected)
