"""How sure a network is of each undecided position: the scores by which positions are decided, and their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dlmkit.randomness import RowNoise
from dlmkit.tensors import scatter

Score = Literal["prob", "margin", "entropy", "random", "drawn"]


RESOLUTION = 1e-4
"""Share of a score by which two must differ to be told apart, or of NEAR_ZERO for smaller ones."""

NEAR_ZERO = 0.01
"""Scores below it are told apart by their difference, RESOLUTION times this, and no longer by their ratio."""


@dataclass(frozen=True)
class Ranking:
    """The undecided positions of each row in the order in which they are decided.

    Attributes:
        where: bool [B, L], the undecided positions, m in a row.
        score: float32 [B, L]; -inf elsewhere.
        rank: int64 [B, L], 0 for the highest score of a row; those of decided positions are m and above.
        log_probs: float32 [N, V], log p_i at the True entries of `where`.
    """

    where: Tensor
    score: Tensor
    rank: Tensor
    log_probs: Tensor

    def first(self, count: Tensor) -> Tensor:
        """Return bool [B, L]: the `count` (int64 [B]) first positions of each row, at most all that are undecided."""
        return (self.rank < count[:, None]) & self.where

    def by_rank(self, values: Tensor) -> Tensor:
        """Return values [B, L] with column k for the position of rank k."""
        return torch.empty_like(values).scatter_(1, self.rank, values)


def ranking(where: Tensor, score: Tensor, log_probs: Tensor, noise: RowNoise) -> Ranking:
    """Return the ranking by score [N], high ones first; equal scores in an order that the row's seed draws.

    Scores are equal where they are `coarse`ly: a network whose positions are relative predicts the same everywhere in a
    text of masks alone, but for rounding, which has a direction and changes with the batch.
    """
    table = torch.full(where.shape, float("-inf"), device=where.device).masked_scatter(where, score.float())
    shuffled = noise.uniform("ties", where.shape[1]).argsort(-1)
    order = shuffled.gather(1, coarse(table).gather(1, shuffled).argsort(dim=-1, descending=True, stable=True))
    places = torch.arange(where.shape[1], device=where.device).expand(where.shape)
    return Ranking(where, table, torch.empty_like(order).scatter_(1, order, places), log_probs)


def coarse(score: Tensor) -> Tensor:
    """Return numbers, of the shape and in the order of the scores, that are equal where scores differ by rounding."""
    return (score.sign() * (score.abs() / NEAR_ZERO).log1p() / RESOLUTION).round()


def state_score(score: Score, log_probs: Tensor, where: Tensor, noise: RowNoise) -> Tensor:
    """Return a score [N] in [0, 1] that does not depend on drawn tokens.

    Args:
        score: "prob" is the probability of the likeliest token; "margin" that less the second one's (arXiv 2502.06768);
            "entropy" exp(-H), 1 for a certain prediction; "random" a number that the row's seed draws.
        log_probs: log p_i, [N, V].
        where: bool [B, L].
        noise: of the step.
    """
    if score == "random":
        return noise.uniform("order", where.shape[1])[where].float()
    if score == "entropy":
        return (-entropy(log_probs)).exp()
    best = log_probs.topk(2 if score == "margin" else 1, dim=-1).values.exp()
    return best[:, 0] - best[:, 1] if score == "margin" else best[:, 0]


def entropy(log_probs: Tensor) -> Tensor:
    """Return the entropy [N] of each row of log-probabilities [N, V], nats."""
    return -(log_probs.exp() * log_probs.clamp_min(-1e30)).sum(-1)


def entropies(ranked: Ranking) -> Tensor:
    """Return the entropy of each undecided position, float32 [B, L], 0 elsewhere."""
    return scatter(entropy(ranked.log_probs), ranked.where)
