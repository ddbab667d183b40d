"""``python -m tests.training.ranked CONFIG FOLDER``: one rank of an experiment, which leaves its weights."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

import torch

from speakerkit.training.experiment import run_experiment
from speakerkit.training.trainer import Trainer, TrainingResult


def main() -> None:
    """Train, and save parameters and their moving average as this rank has them."""
    config, folder = map(Path, sys.argv[1:])
    fit = Trainer.fit

    def fit_and_leave(self: Trainer, stop_after: int | None = None) -> TrainingResult:
        result = fit(self, stop_after)
        names = [name for name, _ in self.model.named_parameters()]
        averages = self.ema.state_dict()["model"] if self.ema is not None else {}
        state = {
            "model": {name: self.model.state_dict()[name] for name in names},
            "ema": {name: averages[name] for name in names if name in averages},
        }
        torch.save(state, folder / f"rank{self.world.rank}.pt")
        return result

    with patch.object(Trainer, "fit", fit_and_leave):
        run_experiment(config)


if __name__ == "__main__":
    main()
