"""The order of training blocks is a pure function of the step, however the global batch is divided."""

from __future__ import annotations

from collections import Counter

import pytest

from dlmkit.data.blocks import PADDING
from dlmkit.data.order import TrainOrder, ValidationOrder

DIVISIONS = [(12, 1, 1), (6, 2, 1), (6, 1, 2), (3, 2, 2), (1, 4, 3), (1, 1, 12), (2, 6, 1)]  # micro, accumulate, world


def global_batches(micro: int, accumulate: int, world: int, num_blocks: int = 50, num_steps: int = 9) -> list[list]:
    orders = [TrainOrder(num_blocks, micro, accumulate, num_steps, 7, rank, world) for rank in range(world)]
    streams = [list(order) for order in orders]
    return [
        sorted(block for stream in streams for a in range(accumulate) for block in stream[step * accumulate + a])
        for step in range(num_steps)
    ]


@pytest.mark.parametrize("division", DIVISIONS)
def test_global_batches_do_not_depend_on_how_they_are_divided(division: tuple[int, int, int]) -> None:
    assert global_batches(*division) == global_batches(12, 1, 1)


def test_entries_lie_where_the_definition_says() -> None:
    micro, accumulate, world, step = 3, 2, 2, 4
    whole = TrainOrder(50, 12, 1, 9, 7).indices(step, 0)
    for rank in range(world):
        order = TrainOrder(50, micro, accumulate, 9, 7, rank, world)
        for a in range(accumulate):
            places = [(j * accumulate + a) * world + rank for j in range(micro)]
            assert order.indices(step, a) == [whole[place] for place in places]


def test_every_epoch_is_another_permutation_of_all_blocks() -> None:
    stream = [block for batch in TrainOrder(10, 4, 1, 15, seed=0) for block in batch]
    epochs = [stream[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_a_global_batch_may_span_several_epochs() -> None:
    (batch,) = TrainOrder(3, 9, 1, 1, seed=0)
    assert Counter(batch) == {0: 3, 1: 3, 2: 3}


@pytest.mark.parametrize("start", [0, 1, 6, 9])
def test_resuming_is_the_tail_of_the_uninterrupted_stream(start: int) -> None:
    arguments = {"num_blocks": 11, "micro_batch_size": 2, "accumulate": 3, "num_steps": 9, "seed": 1}
    resumed = TrainOrder(**arguments, start_step=start)
    assert list(resumed) == list(TrainOrder(**arguments))[start * 3 :]
    assert len(resumed) == len(TrainOrder(**arguments)) == 27


def test_seed_decides() -> None:
    assert list(TrainOrder(50, 4, 1, 5, seed=0)) == list(TrainOrder(50, 4, 1, 5, seed=0))
    assert list(TrainOrder(50, 4, 1, 5, seed=0)) != list(TrainOrder(50, 4, 1, 5, seed=1))


@pytest.mark.parametrize("num_blocks", [1, 2, 11, 12, 13, 24])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_sees_every_block_once_in_equally_many_batches(num_blocks: int, world: int) -> None:
    orders = [ValidationOrder(num_blocks, 4, rank, world) for rank in range(world)]
    streams = [list(order) for order in orders]
    assert len({len(stream) for stream in streams} | {len(order) for order in orders}) == 1
    seen = [block for stream in streams for batch in stream for block in batch if block != PADDING]
    assert sorted(seen) == list(range(num_blocks))
    assert all(0 < len(batch) <= 4 for stream in streams for batch in stream)
    if world == 1:
        assert seen == list(range(num_blocks))
