"""Which utterance stands at which position of an endless, seeded training stream.

A position alone decides what is drawn there. So the order is the same for any number of loading processes, every rank
gets equally many steps however the shards are cut, and a run resumes exactly by going on from its position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Order(Protocol):
    """An endless order over items."""

    def item(self, position: int) -> int:
        """The index of the item at ``position``."""

    def run(self, position: int) -> int:
        """Number of the run that ``position`` stands in: a run is of one speaker, and so of one speed."""


class ShuffledOrder:
    """Each item once an epoch, shuffled anew; items that stand in one window of groups stay near each other.

    Args:
        groups: item indices of each group (the utterances of a shard), or one group of all.
        window: groups whose items are shuffled together; keeps reading of shards local.
    """

    def __init__(self, groups: Sequence[Sequence[int]], seed: int, window: int = 16) -> None:
        self.groups = [np.asarray(group, dtype=np.int64) for group in groups if len(group)]
        self.size = sum(len(group) for group in self.groups)
        self.seed, self.window = seed, window
        self._epoch = -1
        self._order: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def item(self, position: int) -> int:
        """The index of the item at ``position``."""
        epoch, place = divmod(position, self.size)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        return int(self._order[place])

    def run(self, position: int) -> int:
        """Every position is a run of its own."""
        return position

    def _shuffled(self, epoch: int) -> npt.NDArray[np.int64]:
        rng = np.random.default_rng([self.seed, epoch])
        groups = rng.permutation(len(self.groups))
        windows = [
            np.concatenate([self.groups[group] for group in groups[first : first + self.window]])
            for first in range(0, len(groups), self.window)
        ]
        return np.concatenate([rng.permutation(window) for window in windows])


class BalancedOrder:
    """P speakers x K utterances: runs of K utterances of one speaker, speakers shuffled anew each epoch.

    Args:
        speakers: for each speaker, the indices of its items.
        utterances: K; a speaker that has fewer repeats some.
        per_batch: P; an epoch leaves over speakers that would not fill a batch, so a batch never holds one twice
            (where there are at least P speakers).
    """

    def __init__(self, speakers: Sequence[Sequence[int]], utterances: int, per_batch: int, seed: int) -> None:
        self.speakers = [np.asarray(items, dtype=np.int64) for items in speakers]
        self.utterances, self.seed = utterances, seed
        count = len(self.speakers)
        self.slots = count - count % per_batch if count >= per_batch else count
        self._epoch = -1
        self._order: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def item(self, position: int) -> int:
        """The index of the item at ``position``."""
        slot, place = divmod(position, self.utterances)
        epoch, index = divmod(slot, self.slots)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.speakers))
        items = self.speakers[self._order[index]]
        rng = np.random.default_rng([self.seed, epoch, slot])
        return int(rng.choice(items, self.utterances, replace=len(items) < self.utterances)[place])

    def run(self, position: int) -> int:
        """The K utterances of a speaker are a run."""
        return position // self.utterances


class PositionBatches:
    """Endless batches of positions for one rank: ranks take turns batch by batch, from ``start`` on.

    Args:
        start: first position of the stream that has not been used.
    """

    def __init__(self, start: int, batch_size: int, rank: int, world: int) -> None:
        self.start, self.batch_size, self.rank, self.world = start, batch_size, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        first = self.start + self.rank * self.batch_size
        while True:
            yield list(range(first, first + self.batch_size))
            first += self.world * self.batch_size
