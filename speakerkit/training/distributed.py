"""Ranks: started by torchrun or alone, agreeing on errors and stops so that none is left waiting for another."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
import torch.distributed as dist

from speakerkit.errors import PeerFailed, SpeakerKitError, TrainingError
from speakerkit.nn.device import usable_device

TIMEOUT = timedelta(minutes=30)
LAUNCHER_LOOKS = 1.0  # seconds within which a launcher has seen which rank went first


@dataclass(frozen=True)
class World:
    """This process among the ranks of a run."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and messages."""
        return self.rank == 0

    def highest(self, value: int) -> int:
        """The highest ``value`` of all ranks, exchanged on the CPU so that no accelerator waits."""
        if self.size == 1:
            return value
        shared = torch.tensor(value)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return int(shared)

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """The mean of each value over all ranks, which have the same names in the same order."""
        if self.size == 1 or not values:
            return values
        shared = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(shared)
        return dict(zip(values, (shared / self.size).tolist(), strict=True))

    def gather(self, items: list[str]) -> list[str]:
        """The items of all ranks, in the order of the ranks."""
        if self.size == 1:
            return items
        shared: list[list[str]] = [[] for _ in range(self.size)]
        dist.all_gather_object(shared, items)
        return [item for part in shared for item in part]

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that every rank must pass: where one raises a SpeakerKitError, all end, and one says why."""
        error: SpeakerKitError | None = None
        try:
            yield
        except SpeakerKitError as caught:
            error = caught
        # The lowest failing rank speaks: ranks failing for the same reason give one message.
        speaker = self.size - self.highest(self.size - self.rank if error else 0)
        if error is not None and self.rank == speaker:
            raise error
        if speaker < self.size:
            raise PeerFailed(None, f"rank {speaker} failed")


@contextmanager
def ranks(device_name: str) -> Iterator[World]:
    """Join the ranks that torchrun started (environment ``RANK``, ``WORLD_SIZE``), or be the only one.

    Flags go over gloo on the CPU; gradients over nccl where the device is CUDA.

    Raises:
        ConfigError: the device cannot be used.
        PeerFailed: another rank is gone.
        TrainingError: a loading process was killed.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    alone = World(0, 1, torch.device("cpu"))
    try:
        if size == 1:
            yield replace(alone, device=_chosen(device_name))
            return
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
        try:
            world = replace(alone, rank=dist.get_rank(), size=size)
            with world.together():
                device = _chosen(device_name)
            yield replace(world, device=device)
        finally:
            dist.destroy_process_group()
    except RuntimeError as error:
        failure = _meaning(error)
        if failure is None:
            raise
        if isinstance(failure, PeerFailed):
            time.sleep(LAUNCHER_LOOKS)
        raise failure from None


def _chosen(device_name: str) -> torch.device:
    device = usable_device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _meaning(error: RuntimeError) -> SpeakerKitError | None:
    """What torch says in a RuntimeError about processes that are gone; ``None`` for any other."""
    text = str(error)
    if "DataLoader worker" in text:
        return TrainingError(
            None,
            f"a loading process ended ({text.splitlines()[0]})",
            "it may be memory: lower data.workers; the same command goes on from the last checkpoint",
        )
    if isinstance(error, dist.DistError) or "gloo/transport" in text or "Connection closed by peer" in text:
        return PeerFailed(None, "another rank is gone")
    return None
