"""A task without speech: fit a line. ``python -m tests.training.toy EXP_DIR BATCH`` is one rank of several."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.data.sampling import PositionBatches
from speakerkit.training.config import OptimConfig, ScheduleConfig, TrainerConfig
from speakerkit.training.distributed import World, ranks
from speakerkit.training.task import Batch
from speakerkit.training.trainer import Trainer

ALONE = World(0, 1, torch.device("cpu"))


class ToyTask:
    """y = x W with noise; the batch at a position is a function of the position.

    Args:
        poison: positions whose batch holds a NaN.
        norm: with a batch normalisation, whose statistics are buffers.
    """

    def __init__(self, batch_size: int = 8, poison: tuple[int, ...] = (), norm: bool = True) -> None:
        self.batch_size, self.poison, self.norm = batch_size, poison, norm
        self.position = 0
        self.drawn: list[int] = []
        self.speakers = "abc"

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4) if self.norm else nn.Tanh(), nn.Linear(4, 1))

    def train_batches(self, rank: int, world: int) -> Iterator[Batch]:
        for positions in PositionBatches(self.position, self.batch_size, rank, world):
            self.position += self.batch_size * world
            self.drawn.extend(positions)
            yield self.batch(positions)

    def batch(self, positions: list[int]) -> Batch:
        rows = [torch.randn(5, generator=torch.Generator().manual_seed(position)) for position in positions]
        inputs = torch.stack(rows)
        labels = inputs @ torch.arange(1.0, 6.0)[:, None]
        for row, position in enumerate(positions):
            if position in self.poison:
                inputs[row] = torch.nan
        return {"inputs": inputs, "labels": labels, "keys": [f"utt{position}" for position in positions]}

    def valid_batches(self) -> Iterable[Batch]:
        return [self.batch(list(range(1000, 1032)))]

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        noise = 0.01 * torch.randn_like(batch["labels"]) if model.training else 0.0  # chance that resuming must restore
        outputs = model(batch["inputs"]) + noise
        return F.mse_loss(outputs.float(), batch["labels"]), {}

    def evaluate(self, model: Any) -> dict[str, float]:
        return {}

    def start_step(self, model: Any, step: int) -> dict[str, float]:
        return {}

    def fingerprint(self) -> dict[str, Any]:
        return {"speaker list": self.speakers}

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = int(state["position"])


def toy_trainer(
    exp_dir: Path, task: ToyTask | None = None, world: World = ALONE, optim: OptimConfig | None = None, **settings: Any
) -> Trainer:
    """A trainer of the toy task for 12 steps."""
    task = task or ToyTask()
    return Trainer(
        task,
        exp_dir,
        world,
        trainer=TrainerConfig(**{"steps": 12, "device": "cpu", "log_every": 5, **settings}),
        optim=optim or OptimConfig(lr=0.02),
        schedule=ScheduleConfig("cosine", warmup_steps=3, final_lr=1e-4),
        seed=3,
        batch_size=task.batch_size,
    )


def main() -> None:
    """Train without noise or normalisation for two steps, and leave each rank's weights and their moving average."""
    folder, batch_size = Path(sys.argv[1]), int(sys.argv[2])
    with ranks("cpu") as world:
        task = ToyTask(batch_size, norm=False)
        task.loss = lambda model, batch: (F.mse_loss(model(batch["inputs"]), batch["labels"]), {})  # type: ignore[method-assign]
        trainer = toy_trainer(folder, task, world, steps=2, accumulate=2, log_every=1, ema=0.9)
        trainer.fit()
        assert trainer.ema is not None
        state = {"model": trainer.model.state_dict(), "ema": trainer.ema.state_dict(), "drawn": task.drawn}
        torch.save(state, folder / f"rank{world.rank}.pt")


if __name__ == "__main__":
    main()
