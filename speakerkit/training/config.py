"""What every training run configures, whatever its task. Torch-free, so that a bad configuration is found at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from speakerkit.config import require
from speakerkit.errors import ConfigError

MAX_THREADS = 1024


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser.

    Attributes:
        lr: peak learning rate.
        momentum: of SGD, always with Nesterov's correction.
        betas: of Adam and AdamW.
        decay_norms: whether weight decay also acts on biases and normalisation weights.
        reference_batch: ``lr`` is multiplied by (chunks a step over all ranks) / this; 0 leaves it as it is.
        lr_factors: prefix of tensor names to what the learning rate of these is multiplied by, the longest prefix
            winning; 0 freezes them, batch-norm statistics included.
        layer_decay: name of a module to the factor from each of its blocks to the one before it, towards the input;
            see :func:`speakerkit.training.optimizer.block_names`. Multiplied with ``lr_factors``.
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    decay_norms: bool = True
    reference_batch: int = 0
    lr_factors: dict[str, float] = field(default_factory=dict)
    layer_decay: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.lr > 0, "optim.lr", self.lr, "it is above 0")
        require(0 <= self.momentum < 1, "optim.momentum", self.momentum, "it is from 0 to below 1")
        require(all(0 <= beta < 1 for beta in self.betas), "optim.betas", self.betas, "they are from 0 to below 1")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "it is at least 0")
        require(self.reference_batch >= 0, "optim.reference_batch", self.reference_batch, "it is at least 0")
        for prefix, factor in self.lr_factors.items():
            _require_name("optim.lr_factors", prefix)
            require(factor >= 0, f"optim.lr_factors.{prefix}", factor, "it is at least 0, which freezes")
        for prefix, decay in self.layer_decay.items():
            _require_name("optim.layer_decay", prefix)
            require(0 < decay <= 1, f"optim.layer_decay.{prefix}", decay, "it is above 0 and at most 1")


def _require_name(key: str, prefix: object) -> None:
    require(isinstance(prefix, str) and prefix != "", key, prefix, "name a part of the model, such as backbone.layer1")


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over the steps: a decay to ``final_lr`` at the end, times a linear warm-up from 0.

    Attributes:
        name: "exponential" (WeSpeaker's ExponentialDecrease), "cosine", "linear" or "constant".
        warmup_steps: steps of the warm-up.
        final_lr: learning rate at the end (scaled like ``optim.lr``).
    """

    name: Literal["exponential", "cosine", "linear", "constant"] = "exponential"
    warmup_steps: int = 0
    final_lr: float = 5e-5

    def __post_init__(self) -> None:
        require(self.warmup_steps >= 0, "schedule.warmup_steps", self.warmup_steps, "it is at least 0")
        require(self.final_lr >= 0, "schedule.final_lr", self.final_lr, "it is at least 0")
        if self.name == "exponential" and self.final_lr <= 0:
            raise ConfigError("schedule.final_lr", "must be positive for an exponential decay", "for example 5e-5")


@dataclass(frozen=True)
class TrainerConfig:
    """The loop.

    Attributes:
        steps: optimiser steps in all.
        device: "auto" takes CUDA where it is usable.
        precision: autocast type; "fp16" scales its losses and needs CUDA.
        accumulate: batches summed into one step.
        grad_clip: largest gradient norm; 0 for no clipping.
        valid_every, save_every: steps between; 0 never, the last step always validates and saves.
        log_every: steps between two lines of the log.
        keep_last: newest checkpoints kept for resuming.
        average: newest checkpoints kept for averaging.
        ema: decay of the moving average of the weights, which validation and publishing then take; 0 keeps none.
        best_metric: validation metric, smaller is better, whose best checkpoint is kept; "" for the first that
            validation gives: ``valid_loss`` where there is one.
        max_bad_steps: non-finite steps in a row that stop the run, as does a run of no others.
        threads: torch threads a rank on the CPU; 0 leaves torch's choice.
        channels_last: memory format for 2-D convolutions.
        compile: run the model through ``torch.compile``.
    """

    steps: int = 1000
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: int = 1
    grad_clip: float = 0.0
    valid_every: int = 0
    save_every: int = 0
    log_every: int = 50
    keep_last: int = 2
    average: int = 1
    ema: float = 0.0
    best_metric: str = ""
    max_bad_steps: int = 10
    threads: int = 0
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if min(self.steps, self.accumulate, self.log_every, self.keep_last, self.average, self.max_bad_steps) < 1:
            raise ConfigError(
                "trainer", "steps, accumulate, log_every, keep_last, average and max_bad_steps start at 1", "raise them"
            )
        for name in ("grad_clip", "valid_every", "save_every", "threads"):
            value = getattr(self, name)
            require(value >= 0, f"trainer.{name}", value, "it is at least 0")
        require(0 <= self.ema < 1, "trainer.ema", self.ema, "it is from 0 to below 1")
        require(self.threads <= MAX_THREADS, "trainer.threads", self.threads, f"it is at most {MAX_THREADS}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run of the trainer: the keys that experiments of all tasks share.

    Attributes:
        exp_dir: gets everything the run writes.
        seed: the only source of chance.
    """

    exp_dir: str
    seed: int = 42
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError("seed", f"is {self.seed}", "give 0 or a positive number")
