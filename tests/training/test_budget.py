"""FLOPs of training: the share of positions at which the head runs."""

from __future__ import annotations

import pytest
import torch

from dlmkit.laws.quadrature import nodes
from dlmkit.training.budget import head_fraction
from laws import parts


@pytest.mark.parametrize("objective", ["masked", "score_entropy", "block"])
@pytest.mark.parametrize("schedule", parts.names("schedule"))
def test_head_runs_at_the_mean_mask_rate(objective, schedule):
    noise = parts.process("absorbing", schedule)
    grid = nodes(noise)
    mean_alpha = float((grid.weight * noise.alpha(grid.t)).sum())
    share = head_fraction(parts.objective(objective), noise, parts.corruption("independent"))
    assert share == pytest.approx(1 - mean_alpha, rel=1e-5)


@pytest.mark.parametrize("schedule", parts.names("schedule"))
def test_copies_count_with_their_own_mask_rates(schedule):
    """A pair masks every token once; unpaired times keep their own rate."""
    noise, pairs = parts.process("absorbing", schedule), parts.corruption("complementary")
    least = pairs.least_share(noise)
    alpha = noise.alpha((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)
    paired = (alpha >= least) & (alpha <= 1 - least)
    expected = float(torch.where(paired, 0.5, 1 - alpha).mean())
    assert head_fraction(parts.objective("masked"), noise, pairs) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("objective", "process"),
    [("score_entropy", "uniform"), ("uniform", "uniform"), ("hybrid", "hybrid"), ("elbo", "absorbing")],
)
def test_head_runs_everywhere_where_any_token_may_be_noisy(objective, process):
    assert head_fraction(parts.objective(objective), parts.process(process), parts.corruption("independent")) == 1.0


def test_discrete_time_has_the_mean_over_its_steps():
    noise, objective = parts.process("absorbing", "linear"), parts.objective("discrete", num_steps=4)
    assert head_fraction(objective, noise, parts.corruption("independent")) == pytest.approx((1 + 2 + 3 + 4) / 4 / 4)
