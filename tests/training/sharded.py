"""Heads and trainings in shards. ``python -m tests.training.sharded FOLDER`` is one rank, which leaves its results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from speakerkit.config import NamedConfig
from speakerkit.embedding.joint import build_head
from speakerkit.embedding.model import SpeakerNet
from speakerkit.embedding.objective import Objective
from speakerkit.embedding.sharded import build_sharded_head
from speakerkit.nn.sharding import Share, best_class
from speakerkit.training.config import OptimConfig
from speakerkit.training.distributed import World, ranks
from speakerkit.training.task import Batch
from speakerkit.training.trainer import Trainer
from tests.training.toy import ALONE, ToyTask, toy_trainer

CLASSES, DIM, BATCH = 7, 4, 12
TOPK = "arc_margin_intertopk_subcenter"
HEADS: dict[str, tuple[str, dict[str, Any], float]] = {
    "softmax": ("softmax", {}, 0.0),
    "add_margin": ("add_margin", {"scale": 20.0}, 0.2),
    "arc_margin": ("arc_margin", {}, 0.5),
    "no margin": ("arc_margin", {}, 0.0),
    "sphere": ("sphere", {}, 0.3),
    "top 1": (TOPK, {"k_top": 1}, 0.2),
    "top 2": (TOPK, {"K": 1, "k_top": 2, "mp": 0.2}, 0.3),
    "top 5": (TOPK, {}, 0.2),  # more than either rank has
    "top all": (TOPK, {"K": 2, "k_top": 100}, 0.2),
    "no penalty": (TOPK, {"do_lm": True}, 0.5),
}
OPTIMIZERS = {
    "sgd": OptimConfig(lr=0.1),
    "adamw": OptimConfig("adamw", lr=0.01, decay_norms=False, lr_factors={"head": 3.0}),
    "frozen": OptimConfig(lr=0.1, lr_factors={"backbone": 0.0}),
}


def outcome(name: str, tied: bool, rank: int = 0, size: int = 1) -> dict[str, Any]:
    """What a head makes of this rank's part of the batches of two, in float64; ``tied``: its classes are all alike."""
    kind, args, margin = HEADS[name]
    torch.manual_seed(5)
    inputs = torch.randn(2 * BATCH, 6, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (2 * BATCH,))
    layer = nn.Linear(6, DIM).double()
    build = build_sharded_head if size > 1 else build_head
    head: Objective = build(NamedConfig(kind, args), DIM, CLASSES).double()
    head.update(margin)
    if tied:
        for parameter in head.parameters():
            nn.init.ones_(parameter)
    own = slice(rank * 2 * BATCH // size, (rank + 1) * 2 * BATCH // size)
    loss, scores = head.loss_and_scores(layer(inputs[own]), labels[own])
    assert scores is not None
    (0.5 * loss).backward()
    before = layer.weight.grad
    assert before is not None
    if size > 1:
        dist.all_reduce(before)  # as DistributedDataParallel does
    return {
        "loss": loss.detach(),
        "correct": head.correct(scores, labels[own]),
        "before": before / size,
        "rows": {name: parameter.detach() for name, parameter in head.named_parameters()},
        "gradients": {name: parameter.grad for name, parameter in head.named_parameters()},
        "next": torch.rand(3),  # where the generator stands
    }


class ClassTask(ToyTask):
    """Classify points of the plane by their angle; one position is poisoned.

    Args:
        sharded: split the head over the ranks.
    """

    def __init__(self, sharded: bool) -> None:
        super().__init__(4, poison=(27,))
        self.sharded = sharded

    def build_model(self) -> nn.Module:
        backbone: Any = nn.Sequential(nn.Linear(5, DIM, bias=False), nn.BatchNorm1d(DIM), nn.Linear(DIM, DIM))
        build = build_sharded_head if self.sharded else build_head
        head = build(NamedConfig(TOPK, {"K": 2, "k_top": 3, "scale": 8.0}), DIM, CLASSES)
        spec_augment: Any = nn.Identity()
        return SpeakerNet(backbone, head, None, spec_augment)

    def batch(self, positions: list[int]) -> Batch:
        batch = super().batch(positions)
        angle = torch.atan2(batch["labels"][:, 0], batch["inputs"][:, 1].nan_to_num())
        return {**batch, "labels": ((angle / torch.pi + 1) / 2 * CLASSES).long().clamp(0, CLASSES - 1)}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        result: tuple[Tensor, dict[str, Tensor]] = model(batch["inputs"], batch["labels"])
        return result


def class_trainer(folder: Path, optimizer: str, sharded: bool, world: World = ALONE) -> Trainer:
    """Five steps of two batches each, with a norm that is clipped, an average that is kept, and validations."""
    return toy_trainer(
        folder,
        ClassTask(sharded),
        world,
        OPTIMIZERS[optimizer],
        steps=5,
        accumulate=2,
        grad_clip=0.3,
        ema=0.8,
        valid_every=2,
        log_every=1,
        keep_last=5,
    )


def main() -> None:
    """All heads, then all trainings: whole and in shards, at once and in parts."""
    folder = Path(sys.argv[1])
    with ranks("cpu") as world:
        heads = {
            f"{name}, {tied}": outcome(name, tied, world.rank, world.size) for name in HEADS for tied in (False, True)
        }
        tie = best_class(torch.zeros(3, 2), Share(4, world.rank, world.size))
        sizes = {}
        for optimizer in OPTIMIZERS:
            for name, sharded, stops in (
                ("plain", False, (3, None)),
                ("sharded", True, (None,)),
                ("parts", True, (3, None)),
            ):
                for stop in stops:
                    trainer = class_trainer(folder / f"{optimizer}-{name}", optimizer, sharded, world)
                    trainer.resume()
                    trainer.fit(stop)
                sizes[name] = {key: len(tensor) for key, tensor in trainer.model.named_parameters()}
        torch.save({"heads": heads, "tie": tie, "sizes": sizes}, folder / f"rank{world.rank}.pt")


if __name__ == "__main__":
    main()
