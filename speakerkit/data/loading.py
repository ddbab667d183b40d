"""Batches from a seeded stream by loading processes that leave signals and errors to the training one."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from speakerkit.data.sampling import PositionBatches
from speakerkit.errors import SpeakerKitError

Batch = dict[str, Any]


class Positions(Protocol):
    """What gives a sample for each position of a stream."""

    def __getitem__(self, position: int) -> Any:
        """The sample, a function of the position."""


def load_batches(
    samples: Positions, positions: PositionBatches, workers: int, stack: Callable[[Sequence[Any]], Batch]
) -> Iterator[Batch]:
    """Endless batches of ``positions``, each made by ``stack`` from its samples.

    Args:
        workers: loading processes; 0 loads in this one.

    Raises:
        SpeakerKitError: what a sample raised.
    """
    loader: DataLoader[Any] = DataLoader(
        _ErrorsAsValues(samples),  # type: ignore[arg-type]
        batch_sampler=positions,
        num_workers=workers,
        collate_fn=_Stacked(stack),
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_signals_to_trainer,
    )
    loading = iter(loader)
    try:
        while True:
            batch = next(loading)
            if isinstance(batch, SpeakerKitError):
                raise batch
            yield batch
    finally:
        del loading  # ends its processes, also where an error's traceback keeps this frame


def _survive_the_first(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


def _leave_signals_to_trainer(worker: int) -> None:
    """A signal to a whole group of processes must not end the loading ones before the trainer has saved."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _survive_the_first)


class _ErrorsAsValues:
    """Errors of loading processes as values: torch would turn them into tracebacks in text."""

    def __init__(self, samples: Positions) -> None:
        self.samples = samples

    def __getitem__(self, position: int) -> Any:
        try:
            return self.samples[position]
        except SpeakerKitError as error:
            return error


class _Stacked:
    """The batch of what one loading process has read, or the first error."""

    def __init__(self, stack: Callable[[Sequence[Any]], Batch]) -> None:
        self.stack = stack

    def __call__(self, samples: list[Any]) -> Batch | SpeakerKitError:
        return next((each for each in samples if isinstance(each, SpeakerKitError)), None) or self.stack(samples)
