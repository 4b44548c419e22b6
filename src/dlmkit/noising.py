"""Noise that belongs to a block and not to its batch: the same at any micro-batch, accumulation and sharding."""

from __future__ import annotations

from collections.abc import Callable, Iterable

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

    def versions(x_0: Tensor, t: Tensor, scored: Tensor, generator: torch.Generator) -> Tensor:
        rows = (len(t), 1)
        return process.corrupt(x_0.repeat(rows), t.flatten(), scored.repeat(rows), generator)

    x_t = _block_by_block(versions, batch, times, blocks, key)
    return x_t[0] if t.ndim == 1 else x_t


def pure_noise(process: ForwardProcess, batch: Batch, blocks: Iterable[int], *key: int | str) -> Tensor:
    """Return what generation starts from in place of the batch's scored tokens, int64 [B, L], drawn as above."""
    device, shape = batch.tokens.device, (1, batch.tokens.shape[1])
    noise = [process.prior(shape, generator_for(device, *key, block)) for block in blocks]
    return torch.where(batch.scored, torch.cat(noise), batch.tokens)


def training_copies(
    process: ForwardProcess, batch: Batch, t: Tensor, weight: Tensor, blocks: Iterable[int], *key: int | str
) -> tuple[Batch, Tensor, Tensor, Tensor]:
    """Return (batch, x_t, t, weight) of one pass over the C copies that `process` makes of each block.

    The C * B rows are all blocks' first copies, then all second ones. Weights are divided by C: a sum over the rows is
    the sum over blocks of the mean over copies.

    Args:
        process: the noise.
        batch: B clean blocks of L tokens.
        t: float64 [B], or [B, P] where each of P equal parts of a block has a time of its own.
        weight: like t.
        blocks: number of each block in the global batch.
        key: what else the draw depends on, such as seed and step.
    """
    num = process.num_copies
    t, weight = process.copies(t, weight)
    x_t = _block_by_block(process.corrupt_copies, batch, t, blocks, key)
    segments = None if batch.segments is None else batch.segments.repeat(num, 1)
    rows = Batch(batch.tokens.repeat(num, 1), batch.scored.repeat(num, 1), segments)
    return rows, x_t.flatten(0, 1), t.flatten(0, 1), weight.flatten(0, 1) / num


def by_sequence(values: Tensor, num_parts: int) -> Tensor:
    """Return a draw for a global batch, [G * P], as [G, P] for P parts of each sequence, or [G] for one.

    The parts of a sequence are a stride of G apart, so that an even draw is even within each sequence too.
    """
    return values if num_parts == 1 else values.view(num_parts, -1).t()


def _block_by_block(
    draw: Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor],
    batch: Batch,
    t: Tensor,
    blocks: Iterable[int],
    key: tuple[int | str, ...],
) -> Tensor:
    """Return int64 [K, B, L]: draw(x_0 [P, l], t [K, P], scored [P, l], generator) [K, P, l] of each block, l = L / P.

    t is [K, B] or [K, B, P]; the generator is seeded from the key and the block's number alone.
    """

    def drawn(row: int, block: int) -> Tensor:
        now = t[:, row].reshape(len(t), -1)
        parts = (now.shape[1], -1)
        tokens, scored = batch.tokens[row].view(parts), batch.scored[row].view(parts)
        return draw(tokens, now, scored, generator_for(batch.tokens.device, *key, block)).reshape(len(t), -1)

    return torch.stack([drawn(row, block) for row, block in enumerate(blocks)], dim=1)
