"""Likelihood as a metric: a ratio of sums over sequences, with its standard error."""

from __future__ import annotations

import math

import pytest
import torch

from dlmkit.evaluation.likelihood import Likelihood, LikelihoodMetric
from dlmkit.evaluation.nelbo import SequenceScores


def sequences_of_text(num: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats and scored tokens of sequences that differ in length and in difficulty."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 20, (num,), generator=generator)
    rate = 2.0 + torch.rand(num, generator=generator, dtype=torch.float64)
    return rate * tokens, tokens


def scores(nll: torch.Tensor) -> SequenceScores:
    """Sequences of whose nll a tenth is the reconstruction term, and a fifth the prior term."""
    return SequenceScores(nll, 0.1 * nll, 0.2 * nll)


def estimate(nll: torch.Tensor, tokens: torch.Tensor, size: int = 1000) -> Likelihood:
    metric = LikelihoodMetric()
    for piece, count in zip(nll.split(size), tokens.split(size), strict=True):
        metric.update(scores(piece), count)
    return metric.compute()


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_ratio_and_its_standard_error(size):
    nll, tokens = sequences_of_text(200)
    ratio = nll.sum() / tokens.sum()
    # Cochran, Sampling Techniques, equation 2.39: the residuals' standard deviation, over sqrt(n) and the mean size.
    residuals = nll - ratio * tokens
    stderr = residuals.std() / math.sqrt(200) / tokens.double().mean()

    found = estimate(nll, tokens, size)
    assert found.nll == pytest.approx(float(ratio), rel=1e-12)
    assert found.stderr == pytest.approx(float(stderr), rel=1e-3)  # n - 1 with the residuals' mean, which is ~0
    assert found.num_tokens == int(tokens.sum())
    assert (found.reconstruction, found.prior) == pytest.approx((0.1 * found.nll, 0.2 * found.nll))


def test_standard_error_agrees_with_the_bootstrap():
    nll, tokens = sequences_of_text(200)
    drawn = torch.randint(200, (4000, 200), generator=torch.Generator().manual_seed(1))
    ratios = nll[drawn].sum(-1) / tokens[drawn].sum(-1)
    assert estimate(nll, tokens).stderr == pytest.approx(float(ratios.std()), rel=0.06)  # itself known to ~1 %


def test_standard_error_covers():
    """About 95 % of intervals of two standard errors contain the truth."""
    hits = 0
    for seed in range(300):
        found = estimate(*sequences_of_text(100, seed))
        hits += abs(found.nll - 2.5) < 1.96 * found.stderr
    assert 270 <= hits <= 298


def test_padding_does_not_count():
    nll, tokens = sequences_of_text(20)
    padded = estimate(torch.cat([nll, torch.zeros(5)]), torch.cat([tokens, torch.zeros(5, dtype=torch.int64)]))
    assert padded == estimate(nll, tokens)


def test_one_sequence_has_an_infinite_error_and_none_is_refused():
    assert estimate(torch.tensor([6.0]), torch.tensor([3])).stderr == math.inf
    with pytest.raises(ValueError, match=r"raise data\.val_fraction"):
        LikelihoodMetric().compute()


def test_units():
    found = estimate(torch.tensor([2 * math.log(4.0), 2 * math.log(4.0)]), torch.tensor([2, 2]))
    assert found.perplexity == pytest.approx(4.0)
    assert found.bits_per_byte(bytes_per_token=4.0) == pytest.approx(0.5)


def test_ranks_add_up():
    nll, tokens = sequences_of_text(20)
    ranks = [LikelihoodMetric(), LikelihoodMetric()]
    for rank, metric in enumerate(ranks):
        metric.update(scores(nll[rank::2]), tokens[rank::2])
    ranks[0].sums += ranks[1].sums  # dist_reduce_fx="sum"
    assert ranks[0].compute().stderr == pytest.approx(estimate(nll, tokens).stderr)
