"""Statistics of generated text that need no judge, and one that compares it with real text through a causal network.

Shapes: B texts, L tokens of each. Likely text is not good text: each of these is read beside a likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dlmkit.types import Denoiser, NetworkInput

SINGLE_RANKS = 25
"""Ranks that have a bin of their own, the most likely tokens."""

WIDE_BINS = 10
"""Bins of the other ranks, of equal width in log rank."""


@dataclass(frozen=True)
class Estimate:
    """A statistic of B texts.

    Attributes:
        value: of all texts.
        stderr: by the jackknife over texts; infinite for fewer than two.
    """

    value: float
    stderr: float


def jackknife(statistic: Callable[[Tensor], float], num_texts: int) -> Estimate:
    """Return a statistic of texts with its standard error: the spread of what it is without each of them.

    Args:
        statistic: from the places of the texts that count, int64 [n], to a number.
        num_texts: B.
    """
    everything = torch.arange(num_texts)
    value = statistic(everything)
    if num_texts < 2:
        return Estimate(value, math.inf)
    without = torch.tensor([statistic(everything[everything != left]) for left in range(num_texts)])
    return Estimate(value, math.sqrt((num_texts - 1) * float(without.var(correction=0))))


def unigram_entropy(tokens: Tensor) -> Tensor:
    """Return the entropy of each text's own token frequencies, nats, float64 [B], for tokens int64 [B, L].

    Source: the public code of arXiv 2406.07524 and its successors report the mean over texts.
    """
    counts = torch.zeros(len(tokens), int(tokens.max()) + 1, dtype=torch.float64)
    shares = counts.scatter_add_(1, tokens, torch.ones_like(tokens, dtype=torch.float64)) / tokens.shape[1]
    return torch.special.entr(shares).sum(-1)


def distinct(tokens: Tensor, n: int) -> float:
    """Return the share of different n-grams among all n-grams of tokens int64 [B, L], n <= L (arXiv 1510.03055)."""
    grams = tokens.unfold(1, n, 1).flatten(0, 1)
    return len(grams.unique(dim=0)) / len(grams)


def ranks(judge: Denoiser, tokens: Tensor, batch_size: int = 16) -> Tensor:
    """Return how many tokens the judge finds likelier than each actual one, given what is before it: int64 [B, L].

    Args:
        judge: a causal network that predicts the next token.
        tokens: int64 [B, L].
        batch_size: texts at a time.
    """
    found = []
    for some in tokens.split(batch_size):
        t = torch.zeros(len(some), dtype=torch.float64)
        where = torch.ones_like(some, dtype=torch.bool)
        logits = judge(NetworkInput(some, t)).logits(where)
        actual = logits.gather(-1, some[where][:, None])
        found.append((logits > actual).sum(-1).reshape(some.shape))
    return torch.cat(found)


def rank_histogram(ranked: Tensor, vocab_size: int) -> Tensor:
    """Return the share of ranks (int64, any shape) in each bin, float64 [SINGLE_RANKS + WIDE_BINS]."""
    width = math.log(max(vocab_size, SINGLE_RANKS + 1) / SINGLE_RANKS) / WIDE_BINS
    wide = ((ranked.clamp_min(SINGLE_RANKS) / SINGLE_RANKS).log() / width).long().clamp_max(WIDE_BINS - 1)
    bins = torch.where(ranked < SINGLE_RANKS, ranked, SINGLE_RANKS + wide).flatten()
    return torch.bincount(bins, minlength=SINGLE_RANKS + WIDE_BINS).double() / bins.numel()


def histogram_distance(one: Tensor, other: Tensor) -> float:
    """Return the symmetric chi-square distance of two histograms, sum (p - q)^2 / (p + q) / 2, in [0, 1]."""
    total = one + other
    return float(((one - other) ** 2 / total.masked_fill(total == 0, 1.0)).sum() / 2)
