"""Heads from their configuration, and several of them as one."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from speakerkit.config import NamedConfig, parse
from speakerkit.embedding import heads, metric  # noqa: F401 - they register themselves
from speakerkit.embedding.objective import HEADS, Objective, full_precision, number_above
from speakerkit.errors import ConfigError
from speakerkit.registry import suggest


def build_head(config: NamedConfig, embed_dim: int, num_classes: int) -> Objective:
    """The head that a configuration names, with random weights.

    Raises:
        ConfigError: no such head, or arguments that it does not take.
    """
    builder = HEADS[config.name]
    require_arguments(config)
    return builder(embed_dim=embed_dim, num_classes=num_classes, **config.args)


def require_arguments(config: NamedConfig) -> None:
    """Raise a ConfigError where a head is given an argument that it does not take."""
    builder = HEADS[config.name]
    known = [name for name in inspect.signature(builder).parameters if name not in ("embed_dim", "num_classes")]
    for name in config.args:
        if name not in known:
            remedy = suggest(str(name), known) if known else "it takes none"
            raise ConfigError("head.args", f"{config.name} has no argument {name!r}", remedy)


@dataclass(frozen=True)
class Part:
    """One of several heads, and what its loss is multiplied by."""

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0


@HEADS.register("joint")
class Joint(Objective):
    """The weighted sum of several heads, such as softmax and angular prototypical (Kwon et al. 2020, 2010.15809).

    All have the one margin of the schedule. Parts that compare utterances count in training only: a held-out batch
    need not hold two of a speaker.

    Args:
        parts: ``{name, args, weight}`` of each; ``scores`` are those of the first that has classes.
    """

    def __init__(self, embed_dim: int, num_classes: int, parts: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__()
        if not isinstance(parts, (list, tuple)) or not parts:
            raise ConfigError("head.args", "parts names no heads", "as in parts: [{name: softmax}, {name: ge2e}]")
        described = [parse(Part, part, f"head.args.parts[{index}]") for index, part in enumerate(parts)]
        if any(part.name == "joint" for part in described):
            raise ConfigError("head.args", "parts has a joint head in it", "name its parts here")
        self.weights = [number_above(0, "weight", part.weight) for part in described]
        built = [build_head(NamedConfig(part.name, part.args), embed_dim, num_classes) for part in described]
        self.parts = nn.ModuleList(built)
        self.classifies = any(part.classifies for part in built)
        self.compares = any(part.compares for part in built)
        self.margin = next((part.margin for part in built if part.margin is not None), None)

    def update(self, margin: float) -> None:
        """Set the margin of every part that has one."""
        super().update(margin)
        for part in self._objectives():
            part.update(margin)

    def scores(self, embedding: Tensor) -> Tensor:
        return next(part for part in self._objectives() if part.classifies).scores(embedding)

    @full_precision
    def loss_and_scores(self, embedding: Tensor, label: Tensor) -> tuple[Tensor, Tensor | None]:
        total, scores = embedding.new_zeros(()), None
        for part, weight in zip(self._objectives(), self.weights, strict=True):
            if self.training or not part.compares:
                loss, seen = part.loss_and_scores(embedding, label)
                total, scores = total + weight * loss, seen if scores is None else scores
        return total, scores

    def _objectives(self) -> list[Objective]:
        return [part for part in self.parts if isinstance(part, Objective)]
