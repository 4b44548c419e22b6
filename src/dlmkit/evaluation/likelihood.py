"""Likelihood of held-out tokens: the bound averaged over a shared grid of times, with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def time_grid(blocks: Tensor, num_times: int) -> Tensor:
    """Return the times at which validation blocks are scored, float64 [num_times, B], in (0, 1].

    Block i is scored at (k + 1 - u_i) / num_times for k = 0 .. num_times - 1, where u_i = frac(i * golden ratio) is an
    offset that depends on the block's index alone. So every model meets the same times on the same tokens (common
    random numbers), each block covers the whole range, and over blocks the estimate of the integral has no grid bias.

    Args:
        blocks: int64 [B], index of each block in the validation set.
        num_times: size of the grid, at least 1.
    """
    offset = torch.frac((blocks.double() + 0.5) * GOLDEN)
    k = torch.arange(num_times, dtype=torch.float64, device=blocks.device)
    return (k[:, None] + 1.0 - offset) / num_times


@dataclass  # not frozen: torchmetrics walks through what a metric returns
class Likelihood:
    """NLL (or its bound) of held-out text.

    Attributes:
        nll: nats per token.
        stderr: standard error of `nll` over validation blocks; it holds the text's variation and the noise draws'.
        num_tokens: scored tokens.
    """

    nll: float
    stderr: float
    num_tokens: int

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
        # n, sum y, sum y^2, sum x, sum x^2, sum xy with y = a block's nll and x = its scored tokens
        self.add_state("sums", torch.zeros(6, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, num_tokens: Tensor) -> None:
        """Add blocks: nll [B] in nats per block, num_tokens [B] scored in it."""
        y, x = nll.double(), num_tokens.double()
        self.sums += torch.stack([torch.ones_like(y), y, y * y, x, x * x, x * y]).sum(-1).to(self.sums.device)

    def compute(self) -> Likelihood:
        """Return the estimate; the standard error is infinite for fewer than two blocks."""
        n, y, yy, x, xx, xy = self.sums.tolist()
        if x == 0:
            raise ValueError("no validation token was scored: the validation set is empty, raise data.val_fraction")
        ratio = y / x
        residual = max(yy - 2 * ratio * xy + ratio * ratio * xx, 0.0)
        stderr = math.sqrt(residual * n / (n - 1)) / x if n > 1 else math.inf
        return Likelihood(ratio, stderr, int(x))
