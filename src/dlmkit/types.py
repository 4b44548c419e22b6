"""The records that cross seams between parts.

Shapes: B batch, L length, V vocabulary (mask token included where there is one), D hidden size, N chosen positions.
Time: t = 0 is data, t = 1 is noise. Losses are nats per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Clean token blocks as the data pipeline hands them over.

    Attributes:
        tokens: x_0, int64 [B, L].
        scored: bool [B, L]; the positions that noise may touch and that the loss counts. The others are given.
        segments: int64 [B, L], document index inside the block, non-decreasing along L; ``None`` when documents are
            not kept apart.
    """

    tokens: Tensor
    scored: Tensor
    segments: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on `device`."""
        segments = None if self.segments is None else self.segments.to(device)
        return Batch(self.tokens.to(device), self.scored.to(device), segments)

    def __len__(self) -> int:
        return self.tokens.shape[0]


@dataclass(frozen=True)
class Noised:
    """A clean batch, its noisy version and the time it was taken at.

    Attributes:
        x_0: clean tokens, int64 [B, L].
        x_t: noisy tokens, int64 [B, L]; equal to ``x_0`` wherever ``scored`` is False.
        t: time, float64 [B], in [0, 1]; or [B, K], where each of the K equal blocks of a sequence has its own.
        scored: bool [B, L], positions that noise may touch and the loss counts.
        weight: float64, like t: 1 / density of the time sampler at t, so that the mean over draws of ``weight * f(t)``
            is the integral of f over [0, 1], or over the range that the time sampler covers.
    """

    x_0: Tensor
    x_t: Tensor
    t: Tensor
    scored: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Context:
    """Clean tokens that a network reads beside the noisy ones, so that each block sees those before it clean.

    Attributes:
        tokens: int64 [B, L].
        block_size: tokens per block; the last block may be shorter.
        last: predict the last block alone (in generation the blocks before it are done).
    """

    tokens: Tensor
    block_size: int
    last: bool = False


@dataclass(frozen=True)
class TokenLoss:
    """What an objective returns, one value per position, nats, zero where nothing is scored.

    Attributes:
        loss: float [B, L], differentiable; what is minimised (may be re-weighted or clipped).
        nll: float [B, L], detached; its sum over L is an unbiased one-sample estimate of (a bound on) -log p(x_0),
            and the only thing that evaluation reads.
    """

    loss: Tensor
    nll: Tensor


class Predictor(Protocol):
    """What an objective or a sampler sees of a network's output: predictions evaluated on demand."""

    def logits(self, where: Tensor) -> Tensor:
        """Return float32 logits [N, V] at the N True entries of `where` (bool [B, L]), the mask token at -inf."""

    def token_log_prob(self, tokens: Tensor, where: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return log p(tokens) [N] at the True entries of `where`, never building [B, L, V]; tokens is [B, L].

        A `weight` [N] announces what the loss multiplies the values by, up to a common factor: a cheaper gradient.
        """

    def map_logits(self, function: Callable[..., Tensor], where: Tensor, *arguments: Tensor) -> Tensor:
        """Return function(logits [n, V], *arguments [n]) -> [n] over the True entries of `where`, in chunks."""


class Network(Protocol):
    """What an objective or a sampler sees of a backbone."""

    def __call__(
        self, x_t: Tensor, t: Tensor, segments: Tensor | None = None, context: Context | None = None
    ) -> Predictor:
        """Return the prediction for x_t (int64 [B, M]) at time t (float64 [B], or [B, K] for K blocks)."""


@dataclass(frozen=True)
class Canvas:
    """The tokens a sampler works on.

    Attributes:
        tokens: int64 [B, L]; what is not fixed is overwritten.
        fixed: bool [B, L]; given tokens (prompt, infilling context) that never change.
    """

    tokens: Tensor
    fixed: Tensor
