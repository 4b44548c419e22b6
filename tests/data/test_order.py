"""The order of training sequences is a pure function of the step, however the global batch is divided."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from data_helpers import one_line

from dlmkit.data.order import BatchPlan, TrainOrder, ValidationOrder
from dlmkit.data.sequences import PADDING

DIVISIONS = [(12, 1, 1), (6, 2, 1), (6, 1, 2), (3, 2, 2), (1, 4, 3), (1, 1, 12), (2, 6, 1)]  # micro, accumulate, world


def global_batches(micro: int, accumulate: int, world: int, num_sequences: int = 50, num_steps: int = 9) -> list[list]:
    orders = [
        TrainOrder(num_sequences, BatchPlan(micro, accumulate, num_steps, 7), rank, world) for rank in range(world)
    ]
    streams = [list(order) for order in orders]
    return [
        sorted(index for stream in streams for a in range(accumulate) for index in stream[step * accumulate + a])
        for step in range(num_steps)
    ]


@pytest.mark.parametrize("division", DIVISIONS)
def test_global_batches_do_not_depend_on_how_they_are_divided(division: tuple[int, int, int]) -> None:
    assert global_batches(*division) == global_batches(12, 1, 1)


def test_entries_lie_where_the_definition_says() -> None:
    micro, accumulate, world, step = 3, 2, 2, 4
    whole = TrainOrder(50, BatchPlan(12, 1, 9, 7)).indices(step, 0)
    for rank in range(world):
        order = TrainOrder(50, BatchPlan(micro, accumulate, 9, 7), rank, world)
        for a in range(accumulate):
            places = [(j * accumulate + a) * world + rank for j in range(micro)]
            assert order.indices(step, a) == [whole[place] for place in places]


def test_every_epoch_is_another_permutation_of_all_sequences() -> None:
    stream = [index for batch in TrainOrder(10, BatchPlan(4, 1, 15)) for index in batch]
    epochs = [stream[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_a_global_batch_may_span_several_epochs() -> None:
    (batch,) = TrainOrder(3, BatchPlan(9, 1, 1))
    assert Counter(batch) == {0: 3, 1: 3, 2: 3}


@pytest.mark.parametrize("start", [0, 1, 6, 9])
def test_resuming_is_the_tail_of_the_uninterrupted_stream(start: int) -> None:
    plan = BatchPlan(micro_batch_size=2, accumulate=3, num_steps=9, seed=1)
    resumed = TrainOrder(11, plan, start_step=start)
    assert list(resumed) == list(TrainOrder(11, plan))[start * 3 :]
    assert len(resumed) == len(TrainOrder(11, plan)) == 27


def test_seed_decides() -> None:
    first, second = BatchPlan(4, 1, 5, seed=0), BatchPlan(4, 1, 5, seed=1)
    assert list(TrainOrder(50, first)) == list(TrainOrder(50, first))
    assert list(TrainOrder(50, first)) != list(TrainOrder(50, second))


@pytest.mark.parametrize("num_sequences", [1, 2, 11, 12, 13, 24])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_has_every_sequence_once_in_equally_many_batches(num_sequences: int, world: int) -> None:
    orders = [ValidationOrder(num_sequences, 4, rank, world) for rank in range(world)]
    streams = [list(order) for order in orders]
    assert len({len(stream) for stream in streams} | {len(order) for order in orders}) == 1
    seen = [index for stream in streams for batch in stream for index in batch if index != PADDING]
    assert sorted(seen) == list(range(num_sequences))
    assert all(0 < len(batch) <= 4 for stream in streams for batch in stream)
    if world == 1:
        assert seen == list(range(num_sequences))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"micro_batch_size": 0}, "micro_batch_size 0 is outside"),
        ({"accumulate": 0}, "accumulate 0 is outside"),
        ({"num_steps": 0}, "num_steps 0 is outside"),
        ({"seed": -1}, "seed -1 is outside"),
        ({"num_workers": -1}, "num_workers -1 is outside"),
        ({"num_workers": 10**12}, r"num_workers 1000000000000 is outside .*: .* more than 8 for each core"),
    ],
)
def test_a_plan_that_no_run_can_follow(changes: dict[str, int], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as error:
        BatchPlan(**({"micro_batch_size": 2, "accumulate": 1, "num_steps": 3} | changes))
    one_line(error)


def test_as_many_workers_as_the_message_allows() -> None:
    most = 8 * (os.cpu_count() or 1)
    assert BatchPlan(1, 1, 1, num_workers=most).num_workers == most
    with pytest.raises(ValueError, match=rf"\[0, {most}\]"):
        BatchPlan(1, 1, 1, num_workers=most + 1)
