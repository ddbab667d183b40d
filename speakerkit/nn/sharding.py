"""Classes split over the ranks: which rows of a parameter a rank holds, and the exchanges that make one loss of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Share:
    """What a rank holds of ``total`` classes: those from ``first`` to below ``last``, one more or less than any other.

    A class may have several rows of a parameter, which stand together.
    """

    total: int
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> int:
        return self._start(self.rank)

    @property
    def last(self) -> int:
        return self._start(self.rank + 1)

    @property
    def count(self) -> int:
        """How many classes these are."""
        return self.last - self.first

    def of_rank(self, rank: int) -> Share:
        """What another rank holds."""
        return Share(self.total, rank, self.size)

    def rows(self, per_class: int = 1) -> slice:
        """Where the rows of these classes stand among all."""
        return slice(self.first * per_class, self.last * per_class)

    def _start(self, rank: int) -> int:
        return rank * (self.total // self.size) + min(rank, self.total % self.size)


class Sharded(nn.Module):
    """A module whose own parameters each hold the rows of this rank's classes.

    It loads state dictionaries with the rows of all classes, and takes its own from them.
    """

    share: Share

    def whole_shape(self, parameter: Tensor) -> torch.Size:
        """The shape of one of its parameters with the rows of all ranks."""
        return torch.Size((len(parameter) // self.share.count * self.share.total, *parameter.shape[1:]))

    def own(self, whole: Tensor) -> Tensor:
        """This rank's rows of a tensor with those of all classes.

        Raises:
            ValueError: it cannot be one.
        """
        if whole.ndim == 0 or len(whole) % self.share.total:
            raise ValueError(f"a tensor {tuple(whole.shape)} does not hold {self.share.total} classes")
        return whole[self.share.rows(len(whole) // self.share.total)]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, parameter in self._parameters.items():
            tensor = state_dict.get(f"{prefix}{name}")
            if parameter is not None and tensor is not None and tensor.shape == self.whole_shape(parameter):
                state_dict[f"{prefix}{name}"] = self.own(tensor)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def sharded_modules(model: nn.Module) -> dict[str, Sharded]:
    """The modules, by the name in ``model`` of each parameter, that hold only a share of it."""
    return {
        f"{prefix}.{name}" if prefix else name: module
        for prefix, module in model.named_modules()
        if isinstance(module, Sharded) and module.share.size > 1
        for name, _ in module.named_parameters(recurse=False)
    }


def whole_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """The shape of each tensor of a model with the rows of all ranks."""
    modules = sharded_modules(model)
    return {
        name: modules[name].whole_shape(tensor) if name in modules else tensor.shape
        for name, tensor in model.state_dict().items()
    }


def gathered(tensor: Tensor, size: int) -> Tensor:
    """The tensors of all ``size`` ranks, equally long, one behind another."""
    out = tensor.new_empty((size * len(tensor), *tensor.shape[1:]))
    dist.all_gather(list(out.chunk(size)), tensor.contiguous())
    return out


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, batch: Tensor, share: Share) -> Tensor:
        ctx.share = share
        return gathered(batch, share.size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        own = gradient.chunk(ctx.share.size)[ctx.share.rank]
        return ctx.share.size * own, None  # what the ranks average afterwards is to be their sum


def gather_batch(batch: Tensor, share: Share) -> Tensor:
    """The batches (B, ...) of all ranks, (ranks x B, ...), with gradients.

    What follows gives one loss of them all, equal on all ranks, each of which adds the gradient of its classes. The
    batch gets the gradient of the loss times the number of ranks: as where each has the mean over its own batch for a
    loss, the gradients of the layers before are those of the whole once averaged over the ranks.
    """
    gathered_batch: Tensor = _Gather.apply(batch, share)
    return gathered_batch


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, place: Tensor, mine: Tensor) -> Tensor:
        highest = logits.amax(dim=1, keepdim=True)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        shifted = logits - highest
        true = torch.where(mine, shifted.gather(1, place), 0)
        posterior = shifted.exp_()
        sums = torch.stack([posterior.sum(dim=1, keepdim=True), true])  # (2, N, 1)
        dist.all_reduce(sums)
        ctx.save_for_backward(posterior.div_(sums[0]), place, mine)
        return (sums[0].log() - sums[1]).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        posterior, place, mine = ctx.saved_tensors
        difference = posterior.scatter_add(1, place, -mine.to(posterior.dtype))
        return difference.mul_(gradient / len(posterior)), None, None


def place_of(label: Tensor, share: Share) -> tuple[Tensor, Tensor]:
    """Where among this rank's classes the true ones (N,) stand, and which are there at all, (N, 1) each.

    Of those of other ranks, the place is any.
    """
    place = (label - share.first).unsqueeze(1)
    mine = (place >= 0) & (place < share.count)
    return place.clamp(0, share.count - 1), mine


def cross_entropy(logits: Tensor, label: Tensor, share: Share) -> Tensor:
    """The mean cross-entropy over the classes of all ranks, the same on each of them.

    Args:
        logits: of this rank's classes, (N, count), for the same N on all ranks.
        label: (N,) in 0 to below ``share.total``.
    """
    loss: Tensor = _CrossEntropy.apply(logits, *place_of(label, share))
    return loss


def best_class(scores: Tensor, share: Share) -> Tensor:
    """The class (N,) with the highest score, from those of each rank's own classes (N, count); of several the first."""
    best, place = scores.detach().max(dim=1)
    found = torch.stack([best.double(), (place + share.first).double()])[None]  # (1, 2, N): exact up to 2^53 classes
    values, classes = gathered(found, share.size).unbind(dim=1)  # (ranks, N)
    return classes.gather(0, values.argmax(dim=0, keepdim=True))[0].long()
