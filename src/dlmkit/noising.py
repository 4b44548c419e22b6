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
        t: float64 [K, B] for K noisy versions of each block, or [B] for one; [K, B, P] where each of P equal parts of
            a block has a time of its own.
        blocks: number of each block in the global batch, or in the validation set.
        key: what else the draw depends on, such as seed and step.

    Returns:
        [K, B, L], or [B, L] when t is [B].
    """
    times = t[None] if t.ndim == 1 else t
    copies = (times.shape[0], -1)

    def corrupted(row: int, block: int) -> Tensor:
        now = times[:, row].flatten()
        parts = (len(now), -1)
        tokens, scored = (one[row].expand(copies).reshape(parts) for one in (batch.tokens, batch.scored))
        return process.corrupt(tokens, now, scored, generator_for(batch.tokens.device, *key, block)).view(copies)

    x_t = torch.stack([corrupted(row, block) for row, block in enumerate(blocks)], dim=1)
    return x_t[0] if t.ndim == 1 else x_t


def pure_noise(process: ForwardProcess, batch: Batch, blocks: Iterable[int], *key: int | str) -> Tensor:
    """Return what generation starts from in place of the batch's scored tokens, int64 [B, L], drawn as above."""
    device, shape = batch.tokens.device, (1, batch.tokens.shape[1])
    noise = [process.prior(shape, generator_for(device, *key, block)) for block in blocks]
    return torch.where(batch.scored, torch.cat(noise), batch.tokens)


def by_sequence(values: Tensor, num_parts: int) -> Tensor:
    """Return a draw for a global batch, [G * P], as [G, P] for P parts of each sequence, or [G] for one.

    The parts of a sequence are a stride of G apart, so that an even draw is even within each sequence too.
    """
    return values if num_parts == 1 else values.view(num_parts, -1).t()
