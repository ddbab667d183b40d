"""The training stream: each item once an epoch, windows, balance, ranks, and loading processes that change nothing."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speakerkit.data.sampling import BalancedOrder, PositionBatches, ShuffledOrder


@settings(max_examples=50)
@given(
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=12).filter(any),
    window=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_each_item_once_an_epoch(sizes: list[int], window: int, seed: int) -> None:
    ends = np.cumsum(sizes)
    order = ShuffledOrder([range(end - size, end) for end, size in zip(ends, sizes, strict=True)], seed, window)
    size = int(ends[-1])
    for epoch in range(3):
        drawn = [order.item(position) for position in range(epoch * size, (epoch + 1) * size)]
        assert sorted(drawn) == list(range(size))


def test_epochs_and_seeds_differ_and_positions_may_come_in_any_order() -> None:
    first, other = ShuffledOrder([range(50)], seed=1), ShuffledOrder([range(50)], seed=2)
    stream = [first.item(position) for position in range(100)]
    assert stream[:50] != stream[50:]
    assert stream[:50] != [other.item(position) for position in range(50)]
    backwards = ShuffledOrder([range(50)], seed=1)
    assert [backwards.item(position) for position in reversed(range(100))] == stream[::-1]


def test_a_window_holds_items_of_its_groups_only() -> None:
    groups = [range(10 * number, 10 * (number + 1)) for number in range(8)]
    order = ShuffledOrder(groups, seed=3, window=2)
    shards = [order.item(position) // 10 for position in range(80)]
    windows = [set(shards[first : first + 20]) for first in range(0, 80, 20)]
    assert all(len(window) == 2 for window in windows)
    assert set().union(*windows) == set(range(8))
    assert any(shards[place] != shards[place + 1] for place in range(10))  # and the two are mixed


@pytest.mark.parametrize("speakers", [6, 7, 11])
def test_balanced_batches_hold_p_distinct_speakers_with_k_utterances_each(speakers: int) -> None:
    per_batch, repeats = 3, 2
    items = [list(range(4 * speaker, 4 * speaker + 4)) for speaker in range(speakers)]
    order = BalancedOrder(items, repeats, per_batch, seed=0)
    for batch in islice(PositionBatches(0, per_batch * repeats, 0, 1), 20):
        drawn = [order.item(position) for position in batch]
        labels = [item // 4 for item in drawn]
        assert labels[::2] == labels[1::2]
        assert len(set(labels)) == per_batch
        assert len(set(drawn)) == len(drawn)  # distinct utterances too
        assert [order.run(position) - order.run(batch[0]) for position in batch] == [0, 0, 1, 1, 2, 2]
    seen = {order.item(position) // 4 for position in range(order.slots * repeats * 20)}
    assert seen == set(range(speakers))


def test_a_speaker_with_too_few_utterances_repeats_them() -> None:
    order = BalancedOrder([[0], [1, 2, 3]], utterances=3, per_batch=2, seed=0)
    drawn = [order.item(position) for position in range(6)]
    assert sorted(drawn) == [0, 0, 0, 1, 2, 3]


def test_fewer_speakers_than_a_batch_wants_still_fill_it() -> None:
    order = BalancedOrder([[0, 1], [2, 3]], utterances=2, per_batch=4, seed=0)
    assert {order.item(position) for position in range(8)} == {0, 1, 2, 3}


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_take_disjoint_batches_whose_union_is_the_stream(world: int) -> None:
    start, size, steps = 12, 4, 5
    taken = [list(islice(PositionBatches(start, size, rank, world), steps)) for rank in range(world)]
    for step in range(steps):
        union = [position for rank in range(world) for position in taken[rank][step]]
        first = start + step * size * world
        assert union == list(range(first, first + size * world))  # what one process with a world-fold batch takes
