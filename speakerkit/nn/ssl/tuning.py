"""Parameter-efficient tuning: low-rank updates of weights, and adapters; both change nothing at the start."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from speakerkit.errors import ConfigError


class LowRank(nn.Module):
    """LoRA (Hu et al. 2021, 2106.09685, eq. 3) as a parametrisation: a weight W becomes W + alpha / r * B A.

    A is normal with variance 1 / in_features, B zero. A weight that stacks several projections has an A and B for each
    one that is adapted.

    Args:
        weight: W, (projections * out_features, in_features).
        rank: r.
        alpha: size of the update.
        adapted: which of the stacked projections are adapted.
        projections: how many are stacked.
    """

    adapted: Tensor

    def __init__(
        self, weight: Tensor, rank: int, alpha: float, adapted: tuple[int, ...] = (0,), projections: int = 1
    ) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.projections = projections
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(torch.randn(len(adapted), rank, columns) * columns**-0.5)
        self.lora_b = nn.Parameter(torch.zeros(len(adapted), rows // projections, rank))
        self.register_buffer("adapted", torch.tensor(adapted), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        update = self.scale * self.lora_b @ self.lora_a  # (adapted, out_features, in_features)
        stacked = weight.unflatten(0, (self.projections, -1))
        return stacked.index_add(0, self.adapted, update).flatten(0, 1)


def add_low_rank(attention: nn.Module, rank: int, alpha: float) -> None:
    """Adapt the query and value projections of an attention of torchaudio's (Hu et al., section 4.2).

    Raises:
        ConfigError: a rank that is no rank of these matrices.
    """
    size = int(attention.embed_dim)  # type: ignore[arg-type]
    if not 0 < rank < size:
        raise ConfigError("lora_rank", f"is {rank}", f"it lies between 0 and the width, {size}")
    if hasattr(attention, "q_proj"):
        for projection in (attention.q_proj, attention.v_proj):
            low_rank = LowRank(projection.weight, rank, alpha)  # type: ignore[arg-type, union-attr]
            parametrize.register_parametrization(projection, "weight", low_rank)  # type: ignore[arg-type]
    else:  # WavLM's stacks query, key and value
        stacked = attention.attention
        low_rank = LowRank(stacked.in_proj_weight, rank, alpha, (0, 2), 3)  # type: ignore[arg-type, union-attr]
        parametrize.register_parametrization(stacked, "in_proj_weight", low_rank)  # type: ignore[arg-type]


def merge_low_rank(module: nn.Module) -> None:
    """Put W + alpha / r * B A in the place of W, A and B in all of a module; what it computes stays the same."""
    adapted = [
        (part, name)
        for part in module.modules()
        for name, steps in getattr(part, "parametrizations", {}).items()
        if isinstance(steps[0], LowRank)
    ]
    for part, name in adapted:  # one tensor a module
        merged = getattr(part, name).detach().clone()
        # Not by torch's remove_parametrizations: it edits a class that the module shares with those it was copied from.
        part.__class__ = parametrize.type_before_parametrizations(part)
        del part.parametrizations
        part.register_parameter(name, nn.Parameter(merged))


class Adapter(nn.Module):
    """Bottleneck adapter (Houlsby et al. 2019, 1902.00751, figure 2): x + up(GELU(down(x))), (..., D) to (..., D).

    ``down`` starts with a standard deviation of 0.01, as there; ``up`` with zeros, for exactly the identity.
    """

    def __init__(self, dim: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, bottleneck)
        self.up = nn.Linear(bottleneck, dim)
        nn.init.normal_(self.down.weight, std=0.01)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(F.gelu(self.down(x)))


def added_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of all low-rank updates and adapters in a module."""
    added = [part for part in module.modules() if isinstance(part, (LowRank, Adapter))]
    return [parameter for part in added for parameter in part.parameters()]
