"""Noise that belongs to a block and not to its batch: the same at any micro-batch, accumulation and sharding."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dlmkit.processes.base import ForwardProcess
from dlmkit.randomness import generator_for
from dlmkit.types import Batch


def corrupt_blocks(process: ForwardProcess, batch: Batch, t: Tensor, blocks: Iterable[int], *key: int | str) -> Tensor:
    """Return x_t, int64, each block's draw a function of `key` and of its own number alone.

    Args:
        process: the noise.
        batch: B clean blocks of L tokens.
        t: float64 [K, B] for K noisy versions of each block, or [B] for one.
        blocks: number of each block in the global batch, or in the validation set.
        key: what else the draw depends on, such as seed and step.

    Returns:
        [K, B, L], or [B, L] when t is [B].
    """
    times = t if t.ndim == 2 else t[None]
    copies = (times.shape[0], -1)
    x_t = torch.stack(
        [
            process.corrupt(
                batch.tokens[row].expand(copies),
                times[:, row],
                batch.scored[row].expand(copies),
                generator_for(batch.tokens.device, *key, block),
            )
            for row, block in enumerate(blocks)
        ],
        dim=1,
    )
    return x_t if t.ndim == 2 else x_t[0]
