"""Ranks: started by torchrun or alone, agreeing on errors and stops so that none is left waiting for another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from speakerkit.errors import PeerFailed, SpeakerKitError
from speakerkit.nn.device import usable_device

TIMEOUT = timedelta(minutes=30)


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
    """
    device = usable_device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(0, 1, device)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield World(dist.get_rank(), size, device)
    finally:
        dist.destroy_process_group()
