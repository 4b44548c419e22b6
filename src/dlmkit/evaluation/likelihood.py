"""Likelihood of held-out tokens: the bound averaged over a shared grid of times, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

from dlmkit.noising import corrupt_blocks
from dlmkit.processes.base import ForwardProcess
from dlmkit.types import Batch

GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def time_grid(blocks: Tensor, num_times: int) -> tuple[Tensor, Tensor]:
    """Return the times at which validation blocks are scored and their weights, both float64 [num_times, B].

    With v_k = (k + 1 - u_i) / num_times for k = 0 .. num_times - 1, block i is scored at t = v_k^2 with weight
    dt/dv = 2 v_k; u_i = frac(i * golden ratio) is an offset that depends on the block's index alone. So every model
    meets the same times on the same tokens (common random numbers), each block covers the whole range, and over blocks
    the estimate of the integral has no grid bias.

    The square is for the variance: at small t few tokens are masked and each weighs 1 / t, so that the second moment
    of a uniform draw diverges like the integral of 1 / t. Among t = v^p it is smallest for p = 2.

    Args:
        blocks: int64 [B], index of each block in the validation set.
        num_times: size of the grid, at least 1.
    """
    offset = torch.frac((blocks.double() + 0.5) * GOLDEN)
    k = torch.arange(num_times, dtype=torch.float64, device=blocks.device)
    v = (k[:, None] + 1.0 - offset) / num_times
    return v * v, 2.0 * v


def noisy_grid(
    process: ForwardProcess,
    batch: Batch,
    blocks: Tensor,
    num_times: int,
    num_parts: int = 1,
    noise_time: Callable[[Tensor], Tensor] = lambda t: t,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (t [B], weight [B], x_t [B, L]) for each time of the grid, on the batch's device.

    With P = `num_parts` > 1, t and weight are [B, P], and part p of block i takes the offset of block i P + p.

    The noise of a block depends on its index alone and is drawn on the CPU, so that neither batch size nor sharding
    nor device moves the bound.

    Args:
        process: the noise.
        batch: the blocks.
        blocks: int64 [B], index of each block in the validation set.
        num_times: size of the grid, at least 1.
        num_parts: equal parts of a block that have times of their own.
        noise_time: from a time of the grid to the time of the noise (a bound in discrete time has but some).
    """
    device = batch.tokens.device
    numbers = blocks.cpu()[:, None] * num_parts + torch.arange(num_parts)
    shape = (num_times, *numbers.shape) if num_parts > 1 else (num_times, len(blocks))
    t, weight = (grid.view(shape) for grid in time_grid(numbers.flatten(), num_times))
    t = noise_time(t)
    x_t = corrupt_blocks(process, batch.to("cpu"), t, blocks.tolist(), "validation")
    return zip(t.to(device), weight.to(device), x_t.to(device), strict=True)


@dataclass(frozen=True)
class BlockScores:
    """What B blocks cost, float64 [B], nats per block.

    Attributes:
        nll: -log p(x_0), or a bound on it; the other two are part of it.
        reconstruction: the bound's term at t = 0, zero where alpha(0) = 1.
        prior: the bound's term at t = 1, zero where alpha(1) = 0.
    """

    nll: Tensor
    reconstruction: Tensor
    prior: Tensor


@dataclass  # not frozen: torchmetrics walks through what a metric returns
class Likelihood:
    """NLL (or its bound) of held-out text.

    Attributes:
        nll: nats per token.
        stderr: standard error of `nll` over validation blocks; it holds the text's variation and the noise draws'.
        num_tokens: scored tokens.
        reconstruction: the part of `nll` that is the bound's term at t = 0, nats per token.
        prior: the part that is its term at t = 1.
    """

    nll: float
    stderr: float
    num_tokens: int
    reconstruction: float
    prior: float

    @property
    def perplexity(self) -> float:
        """exp(nll)."""
        return math.exp(self.nll)

    def bits_per_byte(self, bytes_per_token: float) -> float:
        """Return nll in bits per byte of text."""
        return self.nll / math.log(2.0) / bytes_per_token


class LikelihoodMetric(Metric):
    """Ratio estimate sum(nll) / sum(tokens) over blocks, with the ratio's standard error; adds up over ranks."""

    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        # number of blocks, sum y, sum y^2, sum x, sum x^2, sum xy with y = a block's nll and x = its scored tokens; the
        # bound's ends, which are part of y
        self.add_state("sums", torch.zeros(8, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, scores: BlockScores, num_tokens: Tensor) -> None:
        """Add blocks: what they cost, and num_tokens [B] scored in each (0 in a block that pads a batch)."""
        y, x = scores.nll.double(), num_tokens.double()
        n = (x > 0).double()
        rows = [n, y, y * y, x, x * x, x * y, scores.reconstruction.double(), scores.prior.double()]
        # Not in place: a validation outside of training runs in inference mode, whose tensors training may not change.
        self.sums = self.sums + torch.stack(rows).sum(-1).to(self.sums.device)

    @property
    def num_blocks(self) -> int:
        """Blocks added on this rank since the last reset."""
        return int(self.sums[0])

    def compute(self) -> Likelihood:
        """Return the estimate; the standard error is infinite for fewer than two blocks."""
        n, y, yy, x, xx, xy, reconstruction, prior = self.sums.tolist()
        if x == 0:
            raise ValueError("no validation token was scored: the validation set is empty, raise data.val_fraction")
        ratio = y / x
        residual = max(yy - 2 * ratio * xy + ratio * ratio * xx, 0.0)
        stderr = math.sqrt(residual * n / (n - 1)) / x if n > 1 else math.inf
        return Likelihood(ratio, stderr, int(x), reconstruction / x, prior / x)
