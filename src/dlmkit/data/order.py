"""The order of sequences: which ones are read at which optimizer step, on which rank, in which micro-batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from dlmkit.data.sequences import PADDING
from dlmkit.ranges import Count, Seed, Workers, check_fields


@dataclass(frozen=True)
class BatchPlan:
    """How a run divides its sequences into batches.

    Attributes:
        micro_batch_size: sequences per micro-step and rank.
        accumulate: micro-steps per optimizer step.
        num_steps: optimizer steps of the whole run.
        seed: of the order of the training sequences.
        num_workers: processes that make batches, on each rank; 0 is fast enough, since a batch is one read of a memory
            map.

    Raises:
        ValueError: `seed` or `num_workers` below 0, `num_workers` above 8 per core, another number below 1.
    """

    micro_batch_size: Count
    accumulate: Count
    num_steps: Count
    seed: Seed = 0
    num_workers: Workers = 0

    def __post_init__(self) -> None:
        check_fields(self)


class TrainOrder(Sampler[list[int]]):
    """Batches of sequence indices as a pure function of (seed, step, micro-step, rank).

    The sequences of epoch e are a permutation seeded from (seed, e). The global batch of optimizer step k is entries
    [k G, (k + 1) G) of the endless concatenation of these permutations, with G = micro_batch_size * accumulate *
    world_size. Entry j of micro-step a on rank r is position (j * accumulate + a) * world_size + r of it, so runs with
    equal G have equal global batches however G is divided, and a resumed run starts at its step.

    Args:
        num_sequences: number of sequences in an epoch.
        plan: sizes of the batches, number of steps and seed.
        rank: index of this process among those that read different data.
        world_size: number of these processes.
        start_step: the optimizer step to start at.
    """

    def __init__(
        self, num_sequences: int, plan: BatchPlan, rank: int = 0, world_size: int = 1, start_step: int = 0
    ) -> None:
        self._num_sequences = num_sequences
        self._plan = plan
        self._rank = rank
        self._world_size = world_size
        self._start_step = start_step
        self._epoch = -1
        self._permutation: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        """Count the micro-steps of the whole run, also when resumed: Lightning adds what was fetched before."""
        return self._plan.num_steps * self._plan.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self._start_step, self._plan.num_steps):
            for micro_step in range(self._plan.accumulate):
                yield self.indices(step, micro_step)

    def indices(self, step: int, micro_step: int) -> list[int]:
        """Return the indices of the sequences of one micro-batch on this rank, in [0, num_sequences)."""
        micro_batch_size, accumulate = self._plan.micro_batch_size, self._plan.accumulate
        entries = np.arange(micro_batch_size)
        global_batch_size = micro_batch_size * accumulate * self._world_size
        inside = (entries * accumulate + micro_step) * self._world_size + self._rank
        epochs, places = np.divmod(step * global_batch_size + inside, self._num_sequences)
        sequences = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            sequences[here] = self._permuted(int(epoch))[places[here]]
        found: list[int] = sequences.tolist()
        return found

    def _permuted(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:  # one epoch at a time is kept, whatever the length of the run
            self._permutation = np.random.default_rng([self._plan.seed, epoch]).permutation(self._num_sequences)
            self._epoch = epoch
        return self._permutation


class ValidationOrder(Sampler[list[int]]):
    """Batches that hold every sequence once: sequence i is assigned to rank i modulo the number of ranks.

    All ranks make equally many batches, because a rank that runs the network fewer times than the others makes a
    sharded network hang. A rank with no sequence in the last batch gets one padding sequence, which is not scored.

    Args:
        num_sequences: number of sequences.
        micro_batch_size: sequences per batch and rank.
        rank: index of this process among those that read different data.
        world_size: number of these processes.
    """

    def __init__(self, num_sequences: int, micro_batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self._num_sequences = num_sequences
        self._per_step = micro_batch_size * world_size
        self._rank = rank
        self._world_size = world_size

    def __len__(self) -> int:
        return -(-self._num_sequences // self._per_step)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, self._num_sequences, self._per_step):
            end = min(start + self._per_step, self._num_sequences)
            yield list(range(start + self._rank, end, self._world_size)) or [PADDING]
