"""The times and the noise at which held-out sequences are evaluated: the same for every model."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from dlmkit.corruption.base import corrupt_sequences
from dlmkit.processes.base import ForwardProcess
from dlmkit.randomness import generator_for
from dlmkit.step import discretise
from dlmkit.types import Batch, Noised, TimeDraw

GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def time_grid(indices: Tensor, num_times: int) -> TimeDraw:
    """Return the times at which validation sequences are scored, with weights, float64 [T, B].

    With v_k = (k + 1 - u_i) / T for k = 0 .. T - 1, sequence i is scored at t = v_k^2 with weight dt/dv = 2 v_k;
    u_i = frac((i + 1/2) / golden ratio) is an offset that depends on the sequence's index alone. The mean over k of
    weight * f(t) estimates the integral of f over [0, 1]. So every model is evaluated at the same times on the same
    tokens (common random numbers), each sequence covers the whole range, and over sequences the estimate has no grid
    bias.

    The square is for the variance: at small t few tokens are masked and each has weight 1 / t, so that the second
    moment of a uniform draw diverges like the integral of 1 / t. Among t = v^p it is smallest for p = 2.

    Args:
        indices: int64 [B], index of each sequence in the validation set.
        num_times: T, at least 1.
    """
    offset = torch.frac((indices.double() + 0.5) * GOLDEN)
    k = torch.arange(num_times, dtype=torch.float64, device=indices.device)
    v = (k[:, None] + 1.0 - offset) / num_times
    return TimeDraw(v * v, 2.0 * v)


def noised_grid(
    process: ForwardProcess,
    batch: Batch,
    indices: Tensor,
    num_times: int,
    num_blocks: int = 1,
    num_steps: int | None = None,
) -> Iterator[Noised]:
    """Yield the noised batch [B, L] of each of the T times, on the batch's device.

    With K > 1 blocks, t and weight are [B, K], and block b of sequence i takes the offset of index i K + b. Tokens are
    noised independently, by noise that depends on the sequence's index alone and is drawn on the CPU, so that neither
    batch size nor sharding nor device moves the bound.

    Args:
        process: the noise.
        batch: the sequences.
        indices: int64 [B], index of each in the validation set.
        num_times: T, at least 1.
        num_blocks: K, equal blocks of a sequence that have times of their own.
        num_steps: of a bound in discrete time, see `Objective.num_steps`.
    """
    device = batch.tokens.device
    numbers = indices.cpu()[:, None] * num_blocks + torch.arange(num_blocks)
    shape = (num_times, *numbers.shape) if num_blocks > 1 else (num_times, len(indices))
    t, weight = (grid.view(shape) for grid in time_grid(numbers.flatten(), num_times))
    t = discretise(t, num_steps)
    x_t = corrupt_times(process, batch.to("cpu"), t, indices.tolist(), "validation")
    for noisy, time, factor in zip(x_t.to(device), t.to(device), weight.to(device), strict=True):
        yield Noised(batch.tokens, noisy, time, batch.scored, factor, batch.segments)


def corrupt_times(process: ForwardProcess, batch: Batch, t: Tensor, indices: list[int], *key: int | str) -> Tensor:
    """Return x_t at T times, int64 [T, B, L], for t float64 [T, B] or [T, B, K]: independent noise, one key a sequence.

    Args:
        process: the noise.
        batch: B clean sequences of L tokens.
        t: times.
        indices: of the sequences in the validation set.
        key: what else the draw depends on.
    """

    def draw(x_0: Tensor, t: Tensor, scored: Tensor, generator: torch.Generator) -> Tensor:
        rows = (len(t), 1)
        return process.corrupt(x_0.repeat(rows), t.flatten(), scored.repeat(rows), generator)

    return corrupt_sequences(draw, batch, t, indices, *key)


def prior_sample(process: ForwardProcess, batch: Batch, indices: list[int], *key: int | str) -> Tensor:
    """Return a prior sample in place of the batch's scored tokens, int64 [B, L], one key a sequence."""
    device, shape = batch.tokens.device, (1, batch.tokens.shape[1])
    noise = [process.prior(shape, generator_for(device, *key, index)) for index in indices]
    return torch.where(batch.scored, torch.cat(noise), batch.tokens)
