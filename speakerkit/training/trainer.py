"""The training loop: one for every task, on one process or many ranks."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from speakerkit.config import to_dict
from speakerkit.errors import ConfigError, TrainingError, first_line
from speakerkit.training.checkpoint import (
    checkpoint_path,
    keep_best,
    list_checkpoints,
    load_checkpoint,
    model_of,
    newest_checkpoint,
    prune,
    save_checkpoint,
)
from speakerkit.training.config import OptimConfig, ScheduleConfig, TrainerConfig
from speakerkit.training.distributed import World
from speakerkit.training.ema import MovingAverage
from speakerkit.training.log import RunLog
from speakerkit.training.optimizer import build_optimizer, part_rates
from speakerkit.training.schedules import learning_rate
from speakerkit.training.shards import Shards
from speakerkit.training.task import Batch, Task

WAITING_WARNING = 0.3  # share of time spent waiting for data
IMPATIENCE = 2.0  # seconds after which a second signal to stop is meant: a terminal and a launcher may both send one
SHAPING = ("steps", "precision", "accumulate", "grad_clip", "ema")  # the trainer's settings that the weights depend on


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        step: optimiser steps done, of ``steps``.
        checkpoints: folder that holds them.
        metrics: of the last validation.
        stopped: whether a signal ended it early.
    """

    step: int
    steps: int
    checkpoints: Path
    metrics: dict[str, float]
    stopped: bool


class Trainer:
    """Trains a task: schedules, precision, ranks, checkpoints, validation, guards.

    All chance is drawn from (seed, step, rank), so that a resumed run goes on bit for bit on the CPU.

    Args:
        exp_dir: gets ``checkpoints/``, ``train.log`` and ``tensorboard/``.
        batch_size: chunks a batch, for the learning-rate scale rule.
    """

    def __init__(
        self,
        task: Task,
        exp_dir: Path,
        world: World,
        *,
        trainer: TrainerConfig,
        optim: OptimConfig,
        schedule: ScheduleConfig,
        seed: int,
        batch_size: int,
    ) -> None:
        self.task, self.world, self.seed = task, world, seed
        self.config, self.optim, self.schedule = trainer, optim, schedule
        self.folder = exp_dir / "checkpoints"
        self.exp_dir = exp_dir
        if trainer.precision == "fp16" and world.device.type != "cuda":
            raise ConfigError("trainer.precision", "fp16 needs CUDA", "use bf16 or fp32 on the CPU")
        if trainer.channels_last and world.device.type != "cuda":
            raise ConfigError("trainer.channels_last", "crashes torch 2.11 on the CPU", "use it with CUDA only")
        if trainer.threads:
            torch.set_num_threads(trainer.threads)
        self._seed_step(-1, shared=True)
        memory_format = torch.channels_last if trainer.channels_last else torch.preserve_format
        self.model = task.build_model().to(world.device).to(memory_format=memory_format)  # type: ignore[call-overload]
        self.rates = part_rates(self.model, optim)
        self.rates.freeze(self.model)
        self.optimizer = build_optimizer(self.model, optim, self.rates)
        self.shards = Shards(self.model, self.optimizer, world)
        if self.shards and trainer.precision == "fp16":  # each rank would skip the overflows of its own share alone
            raise ConfigError("trainer.precision", "fp16 does not go with a model in shards", "use bf16 or fp32")
        self.ema = MovingAverage(self.model, trainer.ema) if trainer.ema else None
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=trainer.precision == "fp16")
        effective = batch_size * world.size * trainer.accumulate
        self.lr_scale = effective / optim.reference_batch if optim.reference_batch else 1.0
        self.peak_lr = optim.lr * self.lr_scale
        self.step = 0
        self.best = math.inf
        self.metrics: dict[str, float] = {}
        self.skipped = 0
        self._stopgap: Path | None = None
        self._stop_asked_at = 0.0

    def resume(self, resume: str = "auto") -> None:
        """Take up a checkpoint.

        Args:
            resume: "auto" goes on from the newest readable checkpoint, "none" refuses a folder that has some, else
                the path of one.

        Raises:
            TrainingError: there is one where none should be, it was trained with another configuration, or the
                folder holds newer ones.
            BundleError: it cannot be read.
        """
        if resume == "none":
            if list_checkpoints(self.folder):
                raise TrainingError(
                    str(self.folder), "holds checkpoints of an earlier run", "use --resume auto, or another exp_dir"
                )
            return
        if resume == "auto":
            found = newest_checkpoint(self.folder)
            if found is None:
                return
            path, state = found
        else:
            path, state = Path(resume), load_checkpoint(resume)
        self._check_fingerprint(path, state.get("fingerprint"))
        try:
            self.model.load_state_dict(model_of(state, path))
            self.optimizer.load_state_dict(self.shards.own_optimizer(state["optimizer"]))
            self.scaler.load_state_dict(state["scaler"])
            if self.ema is not None:
                self.ema.load_state_dict({**state["ema"], "model": self.shards.own(state["ema"]["model"])})
            self.task.load_state_dict(state["task"])
            self.step, self.best = int(state["step"]), float(state["best"])
            self.metrics, self.skipped = dict(state["metrics"]), int(state["skipped"])
            self._stopgap = checkpoint_path(self.folder, self.step) if state["stopgap"] else None
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            reason = first_line(error)
            raise TrainingError(
                str(path),
                f"does not fit this run ({type(error).__name__}: {reason})",
                "restore the configuration, or train into another exp_dir",
            ) from None
        newest = list_checkpoints(self.folder)[-1:]
        if newest and newest[0] > checkpoint_path(self.folder, self.step):
            raise TrainingError(
                str(path), f"is older than {newest[0]}", "move the newer ones away, or train into another exp_dir"
            )

    def fingerprint(self) -> dict[str, Any]:
        """Everything that shapes the training, the task's part and the trainer's own, as plain values."""
        return {
            **self.task.fingerprint(),
            "optim": to_dict(self.optim),
            "schedule": to_dict(self.schedule),
            "trainer": {name: getattr(self.config, name) for name in SHAPING},
        }

    def _check_fingerprint(self, path: Path, theirs: Any) -> None:
        if not isinstance(theirs, dict):
            raise TrainingError(str(path), "is no checkpoint to go on from", "name one of EXP_DIR/checkpoints")
        for name, mine in self.fingerprint().items():
            if mine != theirs.get(name):
                there, here = _difference(theirs.get(name), mine)
                raise TrainingError(
                    str(path),
                    f"was trained with another {name} ({_brief(there)} there, {_brief(here)} here)",
                    "restore the configuration and lists, or train into another exp_dir",
                )

    @property
    def complete(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.config.steps

    def fit(self, stop_after: int | None = None) -> TrainingResult:
        """Train up to ``trainer.steps``.

        Args:
            stop_after: save and end after this step, for a run in parts.

        Raises:
            TrainingError: non-finite losses in a row.
        """
        log = RunLog(self.exp_dir, self.step, self.config.steps, self.world.is_main)
        stopped = False
        try:
            self._announce(log)
            if not self.complete:
                with self._signals():
                    stopped = self._loop(log, min(self.config.steps, stop_after or self.config.steps))
            else:
                log.message(f"training is complete: step {self.step} of {self.config.steps}")
        finally:
            log.close()
        return TrainingResult(self.step, self.config.steps, self.folder, self.metrics, stopped)

    def _announce(self, log: RunLog) -> None:
        parameters = list(self.model.parameters())
        count = sum(parameter.numel() for parameter in parameters)
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        log.message(
            f"device {self.world.device}, {self.world.size} rank(s), {self.config.precision}, {count / 1e6:.3f} M "
            f"parameters ({trained / 1e6:.3f} M trained), steps {self.step} to {self.config.steps}, "
            f"peak lr {self.peak_lr:.4g} (scale rule: x {self.lr_scale:.4g})"
        )
        for line in [*self.rates.described(self.model), *self.shards.described()]:
            log.message(line)

    def _loop(self, log: RunLog, last: int) -> bool:
        """Steps up to ``last``; whether a signal ended them before all were done."""
        model = self._wrapped()
        batches = self.task.train_batches(self.world.rank, self.world.size)
        waited, began, bad_in_row = 0.0, time.monotonic(), 0
        totals: dict[str, float] = {}
        counted = 0
        while self.step < last:
            asked = time.monotonic()
            drawn = self._draw(batches)
            waited += time.monotonic() - asked
            self._seed_step(self.step)
            settings = self.task.start_step(self.model, self.step)
            metrics, keys = self._train_step(model, drawn)
            if metrics is None:
                bad_in_row += 1
                with self.world.together():
                    self._report_bad_step(log, keys, bad_in_row)
            else:
                bad_in_row = 0
                counted += 1
                for name, value in metrics.items():
                    totals[name] = totals.get(name, 0.0) + value
            self.step += 1
            log.step(self.step)
            asked_to_stop = bool(self.world.highest(int(self._stop_asked_at > 0)))
            at_end = self.step == last or asked_to_stop
            if counted and (self.step % self.config.log_every == 0 or at_end):
                share = waited / max(1e-9, time.monotonic() - began)
                means = self.world.mean({name: value / counted for name, value in totals.items()})
                shown = {**means, "lr": self._lr(self.step - 1), **settings, "waiting": share, "skipped": self.skipped}
                log.numbers(self.step, shown, "train")
                if share > WAITING_WARNING and self.step >= 2 * self.config.log_every:
                    log.message(
                        f"{share:.0%} of the time is spent waiting for data: raise data.workers", logging.WARNING
                    )
                waited, began, totals, counted = 0.0, time.monotonic(), {}, 0
            self._validate_and_save(log, at_end)
            if at_end and self.step < self.config.steps:
                log.message(f"stopped at step {self.step}; the same command goes on from there")
                return asked_to_stop
        return False

    def _draw(self, batches: Iterator[Batch]) -> list[Batch]:
        """The batches of one step; where one rank cannot draw, all end."""
        with self.world.together():
            return [next(batches) for _ in range(self.config.accumulate)]

    def _train_step(self, model: nn.Module, drawn: list[Batch]) -> tuple[dict[str, float] | None, list[str]]:
        """One optimiser step; ``None`` instead of metrics where a loss or gradient was not finite on any rank."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr_factor"] * self._lr(self.step)
        running = [buffer.clone() for buffer in self.model.buffers()]  # batch-norm statistics before a possible NaN
        self.optimizer.zero_grad(set_to_none=True)
        metrics: dict[str, float] = {}
        for index, batch in enumerate(drawn):
            last = index == len(drawn) - 1
            with nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync():
                with self._autocast():
                    loss, named = self.task.loss(model, _to_device(batch, self.world.device))
                self.scaler.scale(loss / len(drawn)).backward()
            for name, value in {"loss": loss.detach(), **named}.items():
                metrics[name] = metrics.get(name, 0.0) + float(value) / len(drawn)
        self.scaler.unscale_(self.optimizer)
        norm = self.shards.clip_gradients(self.model, self.config.grad_clip or math.inf)
        finite = math.isfinite(metrics["loss"]) and (math.isfinite(norm) or self._overflowed())
        if self.world.highest(int(not finite)):
            keys = [str(key) for batch in drawn for key in batch["keys"]]
            with torch.no_grad():
                for buffer, before in zip(self.model.buffers(), running, strict=True):
                    buffer.copy_(before)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.update()
            return None, self.world.gather([] if finite else keys)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None and math.isfinite(norm):  # fp16's overflows pass, but their step was not taken
            self.ema.update()
        metrics["grad_norm"] = float(norm)
        return metrics, []

    def _overflowed(self) -> bool:
        """Whether gradients that are not finite may be fp16's affair: the scaler then skips the step by itself."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1.0

    def _report_bad_step(self, log: RunLog, keys: list[str], in_row: int) -> None:
        self.skipped += 1
        log.message(
            f"step {self.step}: loss or gradient not finite, skipped; batch: {', '.join(keys)}", logging.WARNING
        )
        if in_row >= min(self.config.max_bad_steps, self.config.steps):
            newest = list_checkpoints(self.folder)
            kept = f"the last finite checkpoint is {newest[-1]}" if newest else "no checkpoint was due before that"
            raise TrainingError(
                str(self.exp_dir),
                f"{in_row} steps in a row had a loss or gradient that is not finite; {kept}",
                "lower optim.lr, set trainer.grad_clip, or check the utterances named in train.log",
            )

    def _validate_and_save(self, log: RunLog, at_end: bool) -> None:
        validating = self.step == self.config.steps or self._due(self.config.valid_every)
        planned = validating or self._due(self.config.save_every)
        if not planned and not at_end:
            return
        weights = self._weights()
        with self.world.together():  # the main rank works, the others wait
            if self.world.is_main:
                with self.shards.assembled(weights.get("ema", weights)["model"]):
                    metrics = self._validate() if validating else {}
                if metrics:
                    self.metrics = metrics
                    log.numbers(self.step, metrics, "valid")
                    if self._best_metric() not in metrics:
                        log.message(f"trainer.best_metric is none of {', '.join(metrics)}", logging.WARNING)
                self._save(weights, validated=bool(metrics), planned=planned)

    def _weights(self) -> dict[str, Any]:
        """Model, optimiser and moving average, whole on the main rank; all ranks take part."""
        weights = {
            "model": self.shards.whole(self.model.state_dict()),
            "optimizer": self.shards.whole_optimizer(self.optimizer.state_dict()),
        }
        if self.ema is not None:
            averages = self.ema.state_dict()
            weights["ema"] = {**averages, "model": self.shards.whole(averages["model"])}
        return weights

    def _best_metric(self) -> str:
        return self.config.best_metric or next(iter(self.metrics), "")

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _validate(self) -> dict[str, float]:
        """Validation of the weights that are published: the averaged ones where they are kept."""
        self.model.eval()
        with self.ema.applied() if self.ema is not None else nullcontext():
            metrics = self._validated()
        self.rates.train_mode(self.model)
        return metrics

    def _validated(self) -> dict[str, float]:
        """Loss and metrics averaged over the validation batches, and the task's own evaluation."""
        totals: dict[str, float] = {}
        count = 0
        with torch.no_grad():
            for batch in self.task.valid_batches():
                with self._autocast():
                    loss, named = self.task.loss(self.model, _to_device(batch, self.world.device))
                weight = len(batch["keys"])
                count += weight
                for name, value in {"loss": loss, **named}.items():
                    totals[name] = totals.get(name, 0.0) + weight * float(value)
            metrics = {f"valid_{name}": total / count for name, total in totals.items()}
            metrics.update(self.task.evaluate(self.model))
        return metrics

    def _save(self, weights: dict[str, Any], validated: bool, planned: bool) -> None:
        """Write a checkpoint. One that is not ``planned`` stands in for a stop only, and gives way to the next: what is
        averaged must not depend on where a run was stopped."""
        broken = [name for name, tensor in weights["model"].items() if not torch.isfinite(tensor).all()]
        if broken:
            raise TrainingError(str(self.exp_dir), f"{broken[0]} is not finite; nothing was saved", "lower optim.lr")
        value = self.metrics.get(self._best_metric(), math.nan)
        improved = validated and value < self.best  # never for NaN, where the metric is missing
        if improved:
            self.best = value
        path = checkpoint_path(self.folder, self.step)
        save_checkpoint(
            path,
            {
                **weights,
                "step": self.step,
                "scaler": self.scaler.state_dict(),
                "task": self.task.state_dict(),
                "fingerprint": self.fingerprint(),
                "best": self.best,
                "metrics": self.metrics,
                "skipped": self.skipped,
                "stopgap": not planned,
            },
        )
        if self._stopgap is not None and self._stopgap != path:
            self._stopgap.unlink(missing_ok=True)
        self._stopgap = None if planned else path
        if improved:
            keep_best(self.folder, path)
        prune(self.folder, max(self.config.keep_last, self.config.average))

    def _wrapped(self) -> nn.Module:
        self.rates.train_mode(self.model)
        model: nn.Module = torch.compile(self.model) if self.config.compile else self.model  # type: ignore[assignment]
        if self.world.size == 1:
            return model
        devices = [self.world.device] if self.world.device.type == "cuda" else None
        return self.shards.data_parallel(model, devices)

    def _autocast(self) -> Any:
        dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.world.device.type, dtype=dtypes[self.config.precision])

    def _lr(self, step: int) -> float:
        final = self.schedule.final_lr * self.lr_scale
        return learning_rate(step, self.config.steps, self.peak_lr, final, self.schedule)

    def _seed_step(self, step: int, shared: bool = False) -> None:
        """Draw everything random of a step from (seed, step, rank); ``shared`` gives all ranks the same numbers."""
        rank = 0 if shared else self.world.rank
        torch.manual_seed(int(np.random.SeedSequence([self.seed, step + 1, rank]).generate_state(1, np.uint64)[0]))

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn SIGINT or SIGTERM into a stop after the current step, with a checkpoint; a later second one ends it."""

        def ask(number: int, frame: Any) -> None:
            now = time.monotonic()
            self._stop_asked_at = self._stop_asked_at or now
            if now - self._stop_asked_at > IMPATIENCE:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)

        try:
            before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: signals are somebody else's
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _difference(theirs: Any, mine: Any) -> tuple[Any, Any]:
    """Both values; of two mappings, only the entries that differ."""
    if not isinstance(theirs, dict) or not isinstance(mine, dict):
        return theirs, mine
    names = [name for name in {**theirs, **mine} if theirs.get(name) != mine.get(name)]
    return {name: theirs.get(name) for name in names}, {name: mine.get(name) for name in names}


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
