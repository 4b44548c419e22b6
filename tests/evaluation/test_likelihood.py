"""The evaluator: a ratio estimate with its standard error, and a grid of times that belongs to the blocks."""

from __future__ import annotations

import math

import pytest
import torch

from dlmkit.evaluation.likelihood import BlockScores, LikelihoodMetric, noisy_grid, time_grid
from dlmkit.processes.absorbing import Absorbing
from dlmkit.processes.none import NoNoise
from dlmkit.processes.uniform import Uniform
from dlmkit.schedules.linear import Linear
from dlmkit.types import Batch

V, MASK = 7, 6


def blocks_of_text(num: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats and scored tokens of blocks that differ in length and in difficulty."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 20, (num,), generator=generator)
    rate = 2.0 + torch.rand(num, generator=generator, dtype=torch.float64)
    return rate * tokens, tokens


def scores(nll: torch.Tensor) -> BlockScores:
    """Blocks of which a tenth is the reconstruction, and a fifth the prior's term."""
    return BlockScores(nll, 0.1 * nll, 0.2 * nll)


def estimate(nll: torch.Tensor, tokens: torch.Tensor, size: int = 1000):
    metric = LikelihoodMetric()
    for piece, count in zip(nll.split(size), tokens.split(size), strict=True):
        metric.update(scores(piece), count)
    return metric.compute()


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_ratio_and_its_standard_error(size):
    nll, tokens = blocks_of_text(200)
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
    nll, tokens = blocks_of_text(200)
    drawn = torch.randint(200, (4000, 200), generator=torch.Generator().manual_seed(1))
    ratios = nll[drawn].sum(-1) / tokens[drawn].sum(-1)
    assert estimate(nll, tokens).stderr == pytest.approx(float(ratios.std()), rel=0.06)  # itself known to ~1 %


def test_standard_error_covers():
    """About 95 % of intervals of two standard errors hold the truth."""
    hits = 0
    for seed in range(300):
        found = estimate(*blocks_of_text(100, seed))
        hits += abs(found.nll - 2.5) < 1.96 * found.stderr
    assert 270 <= hits <= 298


def test_padding_does_not_count():
    nll, tokens = blocks_of_text(20)
    padded = estimate(torch.cat([nll, torch.zeros(5)]), torch.cat([tokens, torch.zeros(5, dtype=torch.int64)]))
    assert padded == estimate(nll, tokens)


def test_one_block_has_no_known_error_and_none_is_refused():
    assert estimate(torch.tensor([6.0]), torch.tensor([3])).stderr == math.inf
    with pytest.raises(ValueError, match=r"raise data\.val_fraction"):
        LikelihoodMetric().compute()


def test_units():
    found = estimate(torch.tensor([2 * math.log(4.0), 2 * math.log(4.0)]), torch.tensor([2, 2]))
    assert found.perplexity == pytest.approx(4.0)
    assert found.bits_per_byte(bytes_per_token=4.0) == pytest.approx(0.5)


def test_ranks_add_up():
    nll, tokens = blocks_of_text(20)
    ranks = [LikelihoodMetric(), LikelihoodMetric()]
    for rank, metric in enumerate(ranks):
        metric.update(scores(nll[rank::2]), tokens[rank::2])
    assert ranks[0].num_blocks == 10
    ranks[0].sums += ranks[1].sums  # dist_reduce_fx="sum"
    assert ranks[0].compute().stderr == pytest.approx(estimate(nll, tokens).stderr)


@pytest.mark.parametrize("num_times", [1, 2, 8])
def test_each_block_meets_every_stratum_once(num_times):
    t, weight = time_grid(torch.arange(50), num_times)
    assert t.shape == weight.shape == (num_times, 50)
    assert t.dtype == torch.float64
    assert (t > 0).all()
    assert (t <= 1).all()
    v = t.sqrt()  # even in v, and weighted by dt/dv
    torch.testing.assert_close(weight, 2 * v)
    cells = (v * num_times).ceil().long() - 1
    assert torch.equal(cells.sort(0).values, torch.arange(num_times)[:, None].expand(-1, 50))


def test_times_fill_each_stratum_evenly():
    """The offsets of N blocks are a Kronecker sequence: no gap is larger than a few times 1/N."""
    num = 400
    t, weight = time_grid(torch.arange(num), 4)
    offsets = (t[0].sqrt() * 4).sort().values
    gaps = torch.diff(torch.cat([torch.zeros(1), offsets, torch.ones(1)]))
    assert float(gaps.max()) < 2.7 / num
    # So the mean over blocks is an integral to O(1 / N), where independent draws would leave 1 / sqrt(N).
    assert float(weight.mean()) == pytest.approx(1.0, abs=1 / num)
    assert float((weight * t**2).mean()) == pytest.approx(1 / 3, abs=1 / num)


@pytest.mark.parametrize("process", [Absorbing, Uniform, NoNoise])
def test_grid_and_noise_do_not_depend_on_the_batch(process):
    noise = NoNoise(V, MASK) if process is NoNoise else process(Linear(), V, MASK)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(MASK, (12, 9), generator=generator)
    scored = torch.rand(12, 9, generator=generator) < 0.8
    index = torch.arange(12)

    def grid(rows):
        batch = Batch(tokens[rows], scored[rows])
        return [torch.stack(pair) for pair in zip(*noisy_grid(noise, batch, index[rows], 3), strict=True)]

    t, weight, x_t = grid(index)
    assert (t.shape, weight.shape, x_t.shape) == ((3, 12), (3, 12), (3, 12, 9))
    assert torch.equal(x_t[:, ~scored], tokens[~scored].expand(3, -1))
    for rows in (index[:5], index[5:], index[1::2], index[11:]):
        part_t, part_weight, part_x = grid(rows)
        assert torch.equal(part_t, t[:, rows])
        assert torch.equal(part_weight, weight[:, rows])
        assert torch.equal(part_x, x_t[:, rows])
    if process is not NoNoise:
        assert not torch.equal(x_t[0], x_t[2])
