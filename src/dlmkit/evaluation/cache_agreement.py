"""What an approximate cache costs in predictions: cached ones against those of a pass over the whole text.

Shapes: B sequences, L positions, N of them compared, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from dlmkit.types import Cache, Denoiser, NetworkInput

ROWS = 256
"""Positions that are compared at a time, in float64 [., V]."""


@dataclass(frozen=True)
class State:
    """Texts in the course of generation.

    Attributes:
        tokens: the whole texts, int64 [B, L].
        t: float64 [B].
        where: bool [B, L], the positions that are compared, such as those still masked; all inside of the cache's run.
    """

    tokens: Tensor
    t: Tensor
    where: Tensor


@dataclass(frozen=True)
class Agreement:
    """How close cached predictions are to uncached ones.

    Attributes:
        same_argmax: share of positions whose likeliest token is the same, in [0, 1].
        kl: KL(uncached || cached), mean over positions, nats.
        num_positions: how many were compared.
    """

    same_argmax: float
    kl: float
    num_positions: int


@torch.no_grad()
def cache_agreement(network: Denoiser, cache: Cache, num_tokens: int, states: Iterable[State]) -> Agreement:
    """Compare predictions with a cache and without one, at the same states.

    The states may be those where the cache was made, at which an approximate cache agrees, or later ones, at which it
    has drifted. One state at a time gives the drift step by step.

    Args:
        network: without blocks: the reference is its plain pass over the text.
        cache: of what is around a run of tokens, from `Denoiser.freeze`, or before it, from `Denoiser.prefill`.
        num_tokens: tokens of that run, which begins at `cache.length`.
        states: what is outside of the run should be as in the cache.

    Raises:
        ValueError: positions outside of the run, or none at all.
    """
    same, divergence, num = 0, 0.0, 0
    run = slice(cache.length, cache.length + num_tokens)
    for state in states:
        inside = state.where[:, run]
        if int(inside.sum()) != int(state.where.sum()):
            raise ValueError(
                f"where has positions outside of tokens {run.start} to {run.stop}, the run of the cache: leave them out"
            )
        whole = network(NetworkInput(state.tokens, state.t)).logits(state.where)
        cached = network(NetworkInput(state.tokens[:, run], state.t, cache=cache)).logits(inside)
        same += int((whole.argmax(-1) == cached.argmax(-1)).sum())
        divergence += sum(
            float(_divergence(*rows).sum()) for rows in zip(whole.split(ROWS), cached.split(ROWS), strict=True)
        )
        num += len(whole)
    if num == 0:
        raise ValueError("no position to compare: give a state whose where is True somewhere")
    return Agreement(same / num, divergence / num, num)


def _divergence(logits: Tensor, other: Tensor) -> Tensor:
    """Return KL(p || q), float64 [N] nats, of the distributions with logits [N, V] each; -inf in both is no token."""
    log_p, log_q = logits.double().log_softmax(-1), other.double().log_softmax(-1)
    terms = log_p.exp() * (log_p - log_q)
    return terms.masked_fill(log_p.isneginf(), 0.0).sum(-1)
