"""The order of blocks: which block is seen at which optimizer step, on which rank, in which micro-batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from dlmkit.data.blocks import PADDING


class TrainOrder(Sampler[list[int]]):
    """Batches of block indices as a pure function of (seed, step, micro-step, rank).

    The blocks of epoch e are a permutation seeded from (seed, e). The global batch of optimizer step k is entries
    [k G, (k + 1) G) of the endless concatenation of these permutations, with G = micro_batch_size * accumulate *
    world_size. Entry j of micro-step a on rank r is position (j * accumulate + a) * world_size + r of it, so runs with
    equal G see equal global batches however G is divided, and a resumed run simply begins at its step.

    Args:
        num_blocks: number of blocks in an epoch.
        micro_batch_size: blocks per micro-step and rank.
        accumulate: micro-steps per optimizer step.
        num_steps: optimizer steps of the whole run.
        seed: of the permutations.
        rank: index of this process among those that see different data.
        world_size: number of these processes.
        start_step: the optimizer step to begin at.
    """

    def __init__(
        self,
        num_blocks: int,
        micro_batch_size: int,
        accumulate: int,
        num_steps: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
    ) -> None:
        self._num_blocks = num_blocks
        self._micro_batch_size = micro_batch_size
        self._accumulate = accumulate
        self._num_steps = num_steps
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._start_step = start_step
        self._epoch = -1
        self._permutation: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        """Count the micro-steps of the whole run, also when resumed: Lightning adds what was fetched before."""
        return self._num_steps * self._accumulate

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self._start_step, self._num_steps):
            for micro_step in range(self._accumulate):
                yield self.indices(step, micro_step)

    def indices(self, step: int, micro_step: int) -> list[int]:
        """Return the blocks of one micro-batch."""
        entries = np.arange(self._micro_batch_size)
        global_batch_size = self._micro_batch_size * self._accumulate * self._world_size
        inside = (entries * self._accumulate + micro_step) * self._world_size + self._rank
        epochs, places = np.divmod(step * global_batch_size + inside, self._num_blocks)
        blocks = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            blocks[here] = self._permuted(int(epoch))[places[here]]
        found: list[int] = blocks.tolist()
        return found

    def _permuted(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:  # one epoch at a time is kept, whatever the length of the run
            self._permutation = np.random.default_rng([self._seed, epoch]).permutation(self._num_blocks)
            self._epoch = epoch
        return self._permutation


class ValidationOrder(Sampler[list[int]]):
    """Every block once, in order, dealt to the ranks in turn.

    All ranks make equally many batches, because sharded networks hang otherwise. A rank that comes away empty from the
    last round gets one padding block, of which nothing is scored.

    Args:
        num_blocks: number of blocks.
        micro_batch_size: blocks per batch and rank.
        rank: index of this process among those that see different data.
        world_size: number of these processes.
    """

    def __init__(self, num_blocks: int, micro_batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self._num_blocks = num_blocks
        self._round = micro_batch_size * world_size
        self._rank = rank
        self._world_size = world_size

    def __len__(self) -> int:
        return -(-self._num_blocks // self._round)

    def __iter__(self) -> Iterator[list[int]]:
        for begin in range(0, self._num_blocks, self._round):
            end = min(begin + self._round, self._num_blocks)
            yield list(range(begin + self._rank, end, self._world_size)) or [PADDING]
