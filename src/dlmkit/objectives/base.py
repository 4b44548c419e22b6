"""The seam of objectives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from dlmkit.processes.base import ForwardProcess
from dlmkit.types import Batch, Network, Noised, Predictor, TokenLoss

Predicts = Literal["x0", "x0_loo", "score", "next"]
"""What a trained network's output means: the posterior of x_0 given x_t, the same without looking at the position's own
noisy token (leave-one-out), a score ratio, or the next token of a causal model."""


class Objective(ABC):
    """What is minimised, and the bound on -log p(x_0) that goes with it.

    Laws (dlmkit.laws.objectives): with the exact predictor the integral of nll over t is -log p(x) for each x;
    any other predictor has a larger mean; closed forms equal the generic `elbo`.
    """

    predicts: Predicts
    exact = False
    """Whether nll is the exact -log p(x_0) rather than an upper bound on it."""

    continuous = True
    """Whether nll integrates over t; otherwise `noise_time` says which times there are, and it bounds their chain."""

    block_size: int | None = None
    """Tokens per block where blocks are noised and predicted one after the other, or ``None``."""

    @abstractmethod
    def __call__(self, prediction: Predictor, noised: Noised, process: ForwardProcess) -> TokenLoss:
        """Return per-token losses [B, L], nats.

        Args:
            prediction: what the network says about `noised.x_t`.
            noised: clean and noisy tokens, their time and the time sampler's weight.
            process: the noise that made `noised.x_t`.
        """

    @abstractmethod
    def check(self, process: ForwardProcess) -> None:
        """Raise ValueError when this objective does not hold for `process`; called before anything is trained."""

    def ask(self, network: Network, batch: Batch, x_t: Tensor, t: Tensor) -> Predictor:
        """Return what `network` says about x_t (int64 [B, L]) at t."""
        return network(x_t, t, batch.segments)

    def rows(self, prediction: Predictor, noised: Noised) -> tuple[Predictor, Noised]:
        """Return both with one time t for each row: as they are, or with the blocks of a sequence as rows."""
        return prediction, noised

    def log_marginal(self, logits: Tensor, x_t: Tensor, t: Tensor, process: ForwardProcess) -> Tensor:
        """Return the log of what the network says of a noisy token in view of the others, p_t(. | x_t elsewhere).

        Args:
            logits: its raw output, float64 [N, V].
            x_t: noisy tokens there, int64 [N].
            t: float64 [N].
            process: the noise.
        """
        return process.marginal(process.log_x0(logits, x_t).exp(), t).log()

    def num_times(self, length: int) -> int:
        """Return K, how many times t a sequence of `length` tokens is noised at: one, or one for each block."""
        return 1

    def noise_time(self, t: Tensor) -> Tensor:
        """Return the time that noise is made at when t (any shape, in (0, 1]) was drawn."""
        return t

    def head_fraction(self, process: ForwardProcess) -> float:
        """Return the expected share of scored positions at which the head runs, for counting FLOPs."""
        return 1.0


def masked_share(process: ForwardProcess) -> float:
    """Return the mean of 1 - alpha(t) over the copies of a block in training, for t uniform over [0, 1]."""
    t = (torch.arange(1024, dtype=torch.float64) + 0.5) / 1024
    copies, _ = process.copies(t, torch.ones_like(t))
    return float((1.0 - process.alpha(copies.flatten())).mean())


def check_weighting(weighting: str, choices: tuple[str, ...], max_weight: float | None) -> None:
    """Refuse a weighting of the training loss that is unknown, or whose clip `max_weight` does not go with it.

    Raises:
        ValueError: not one of `choices`; "clipped" without a positive `max_weight`, or another one with it.
    """
    if weighting not in choices:
        raise ValueError(f"weighting {weighting!r} is unknown: choose one of {', '.join(choices)}")
    if (weighting == "clipped") != (max_weight is not None):
        raise ValueError(
            f"max_weight {max_weight} with weighting {weighting!r}: 'clipped' needs a max_weight, such as 10, and"
            " the others take none (null)"
        )
    if max_weight is not None and max_weight <= 0:
        raise ValueError(f"max_weight {max_weight} is not positive: no token would count, try 10")


def scatter(values: Tensor, where: Tensor) -> Tensor:
    """Return [B, L] with `values` [N] at the True entries of `where` and zero elsewhere, differentiably."""
    out = torch.zeros(where.shape, dtype=values.dtype, device=values.device)
    return out.masked_scatter(where, values)


def at_positions(per_sequence: Tensor, where: Tensor) -> Tensor:
    """Return per-sequence values [B] repeated to the True entries of `where` [B, L], as [N]."""
    return per_sequence[:, None].expand(where.shape)[where]
