"""Likelihood of held-out tokens as a metric: a ratio of sums over sequences, with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

from dlmkit.evaluation.nelbo import SequenceScores


@dataclass  # not frozen: torchmetrics traverses what a metric returns
class Likelihood:
    """NLL (or its bound) of held-out text.

    Attributes:
        nll: nats per token.
        stderr: standard error of `nll` over validation sequences; it contains the variation of text and noise.
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
    """Ratio estimate sum(nll) / sum(tokens) over sequences, with the ratio's standard error; sums over ranks."""

    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        # number of sequences, sum y, sum y^2, sum x, sum x^2, sum xy with y = a sequence's nll and x = its scored
        # tokens; the boundary terms, which are part of y
        self.add_state("sums", torch.zeros(8, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, scores: SequenceScores, num_tokens: Tensor) -> None:
        """Add sequences with num_tokens [B] scored in each (0 in a sequence that pads a batch)."""
        y, x = scores.nll.double(), num_tokens.double()
        n = (x > 0).double()
        rows = [n, y, y * y, x, x * x, x * y, scores.reconstruction.double(), scores.prior.double()]
        # Not in place: a validation outside of training runs in inference mode, whose tensors training may not change.
        self.sums = self.sums + torch.stack(rows).sum(-1).to(self.sums.device)

    def compute(self) -> Likelihood:
        """Return the estimate over all ranks; the standard error is infinite for fewer than two sequences.

        Raises:
            ValueError: no token was scored.
        """
        n, y, yy, x, xx, xy, reconstruction, prior = self.sums.tolist()
        if x == 0:
            raise ValueError("no validation token was scored: the validation set is empty, raise data.val_fraction")
        ratio = y / x
        residual = max(yy - 2 * ratio * xy + ratio * ratio * xx, 0.0)
        stderr = math.sqrt(residual * n / (n - 1)) / x if n > 1 else math.inf
        return Likelihood(ratio, stderr, int(x), reconstruction / x, prior / x)
