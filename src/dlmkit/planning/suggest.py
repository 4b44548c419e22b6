"""Which strategy, checkpointing and micro-batch to take."""

from __future__ import annotations

from dataclasses import dataclass

from dlmkit.planning.job import Job, Strategy
from dlmkit.planning.memory import Memory, MemoryModel

USABLE = 0.9
"""Share of a device's memory that a plan fills; the rest is for the driver, libraries and fragmentation."""

ENOUGH_TOKENS = {"single": 4096, "ddp": 4096, "fsdp2": 16_384}
"""Tokens of a micro-batch that keep a GPU busy. Of FSDP2 those that hide its exchange, about 12 bytes a weight and
micro-batch at 50 GB/s, behind 6 operations a weight and token at 400 TFLOP/s."""


@dataclass(frozen=True)
class Suggestion:
    """What to take.

    Attributes:
        memory: with it.
        accumulate: micro-batches of an optimizer step.
        reason: why, in one line.
    """

    memory: Memory
    accumulate: int
    reason: str


def suggest(model: MemoryModel, memory: float) -> Suggestion | None:
    """Return the fastest way that fits into `memory` bytes of each rank, or ``None`` where none does.

    In this order: whole weights on each rank before shards, since they are exchanged less; activations kept before
    recomputed ones, which cost a third of the trunk's operations, and more than sharding does. A way with a micro-batch
    of fewer than ENOUGH_TOKENS is taken only where no other has more.
    """
    job = model.job
    share = job.batch_size // job.ranks
    best: tuple[int, bool, Strategy] | None = None
    for checkpointing in sorted(job.backbones):
        for strategy in ways(job):
            size = divisor(share, model.largest(share, checkpointing, strategy, memory))
            if size and (best is None or size > best[0]):
                best = (size, checkpointing, strategy)
            if size >= min(share, -(-ENOUGH_TOKENS[strategy] // job.length)):
                return _suggestion(model, size, checkpointing, strategy)
    return None if best is None else _suggestion(model, *best)


def ways(job: Job) -> tuple[Strategy, ...]:
    """Return the strategies for a number of ranks; shards where weights and states can be split."""
    if job.ranks == 1:
        return ("single",)
    return ("ddp", "fsdp2") if job.divisible else ("ddp",)


def divisor(share: int, most: int) -> int:
    """Return the largest number up to `most` that divides `share`; 0 where `most` is."""
    return next((size for size in range(min(most, share), 0, -1) if share % size == 0), 0)


def _suggestion(model: MemoryModel, size: int, checkpointing: bool, strategy: Strategy) -> Suggestion:
    whole = "weights whole on each device" if strategy != "fsdp2" else "weights, gradients and states in shards"
    kept = "activations recomputed" if checkpointing else "activations kept"
    share = model.job.batch_size // model.job.ranks
    return Suggestion(model.at(size, checkpointing, strategy), share // size, f"the fastest that fits: {whole}, {kept}")
