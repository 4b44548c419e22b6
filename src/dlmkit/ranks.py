"""The processes of a run on several devices: which one this is, and which share of the data it sees."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class Shard(NamedTuple):
    """A process's share of the data: every `world_size`-th item, from number `rank` on."""

    rank: int
    world_size: int


def is_rank_zero() -> bool:
    """Return whether this process claims the run's folder, writes into it and prints; known before a Trainer exists.

    Lightning, torchrun and Slurm each name the rank in a variable of their own.
    """
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name]) == 0
    return int(os.environ.get("NODE_RANK", 0)) == 0 and int(os.environ.get("LOCAL_RANK", 0)) == 0


def shard_of(trainer: Trainer | None) -> Shard:
    """Return this process's share of the data; tensor-parallel peers share one, and without a Trainer it is all."""
    shard = None if trainer is None else trainer.distributed_sampler_kwargs
    return Shard(0, 1) if shard is None else Shard(shard["rank"], shard["num_replicas"])
