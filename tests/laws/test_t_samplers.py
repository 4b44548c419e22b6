"""Time samplers: a weighted mean over draws is an integral over t, and every share of a batch covers the range."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlmkit.laws import t_samplers as laws
from dlmkit.laws.findings import STANDARD_ERRORS
from dlmkit.randomness import generator_for
from dlmkit.t_samplers.base import TimeSampler, strata, stretch
from dlmkit.t_samplers.stratified import Stratified
from laws import parts
from laws.asserting import asserting
from laws.enumeration import chi_square_p

CASES = [pytest.param(*pair, id="-".join(pair)) for pair in parts.with_schedules("t_sampler")]
WITH_EPS = [pytest.param(*pair.values, id=pair.id) for pair in CASES if parts.takes("t_sampler", pair.values[0], "eps")]
CELLS = [pytest.param(*pair, id="-".join(pair)) for pair in parts.with_schedules("t_sampler") if pair[0] != "iid"]
law_mean_is_the_integral = asserting(laws.law_mean_is_the_integral)
law_covers_the_range = asserting(laws.law_covers_the_range)


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_t_sampler(name, schedule, law):
    asserting(law)(parts.t_sampler(name, schedule))


@pytest.mark.parametrize(("name", "schedule"), WITH_EPS)
def test_the_weight_knows_what_eps_leaves_out(name, schedule):
    """eps = 0.3 would show a forgotten (1 - eps); the integral over [0.8, 1] knows no eps."""
    t, weight = parts.t_sampler(name, schedule, eps=0.3).sample(200_000, generator_for("cpu", "eps"))
    terms = weight * (t > 0.8)
    assert abs(float(terms.mean()) - 0.2) <= STANDARD_ERRORS * float(terms.std()) / len(t) ** 0.5
    assert float((1 - parts.schedule(schedule).alpha(t)).min()) < 0.31 or float(t.min()) < 0.31
    assert float(t.min()) > 0.2 or float((1 - parts.schedule(schedule).alpha(t)).min()) > 0.299


def cells(name: str, schedule: str, sampler: TimeSampler, t: Tensor) -> Tensor:
    """The stratum of each draw: of t, or of alpha(t) for `importance` and `clipped`."""
    if name in ("importance", "clipped"):
        alpha = parts.schedule(schedule).alpha
        low, high = (sampler.low, sampler.high) if name == "clipped" else (sampler.eps, 1.0)
        top, bottom = 1 - low, max(1 - high, float(alpha(torch.ones(1, dtype=torch.float64))))
        share = (alpha(t) - bottom) / (top - bottom)
    else:
        share = (1 - t) / (1 - sampler.eps)
    return (share * len(t)).long()


@pytest.mark.parametrize(("name", "schedule"), CELLS)
def test_one_draw_in_each_cell(name, schedule):
    sampler = parts.t_sampler(name, schedule)
    for num in (1, 7, 64):
        t, _ = sampler.sample(num, generator_for("cpu", "cells", num))
        assert sorted(cells(name, schedule, sampler, t).tolist()) == list(range(num))


@pytest.mark.parametrize("num_shares", [1, 2, 4, 8, 16])
@pytest.mark.parametrize(("name", "schedule"), CELLS)
def test_every_share_covers_the_range(name, schedule, num_shares):
    """Rank r of R takes t[r::R]: exactly one draw from each R-fold cell, so no rank sees a slice of [0, 1] only."""
    sampler, num = parts.t_sampler(name, schedule), 64
    for seed in range(5):
        t, _ = sampler.sample(num, generator_for("cpu", "shares", seed))
        cell = cells(name, schedule, sampler, t)
        for share in range(num_shares):
            coarse = cell[share::num_shares] // num_shares
            assert sorted(coarse.tolist()) == list(range(num // num_shares))


def test_every_row_meets_every_cell():
    """Row i of a batch is not tied to a time: over steps it is in each cell equally often."""
    draws = torch.stack([strata(8, generator_for("cpu", "rows", step)) for step in range(2_000)])
    for row in (0, 3, 7):
        counts = torch.bincount((draws[:, row] * 8).long(), minlength=8)
        assert chi_square_p(counts, torch.full((8,), 2_000 / 8)) > 1e-6


@pytest.mark.parametrize(("name", "schedule"), CELLS)
def test_strata_have_less_variance_than_independent_draws(name, schedule):
    """Of a masked bound: -alpha'(t) times something smooth in alpha, which is what both are for."""
    sampler, noise = parts.t_sampler(name, schedule), parts.schedule(schedule)

    def spread(num_at_once: int) -> float:
        means = []
        for seed in range(30):
            pieces = [sampler.sample(num_at_once, generator_for("cpu", seed, k)) for k in range(16 // num_at_once)]
            terms = [weight * -noise.derivative(t) * noise.alpha(t) ** 2 for t, weight in pieces]
            means.append(torch.cat(terms).mean())
        return float(torch.stack(means).std())

    # Jitter in each cell gives 16^-1 of it to first order; one offset for all cells, which a slope shifts as one, 4^-1.
    assert spread(16) < (0.4 if name == "offset_grid" else 0.2) * spread(1)


@pytest.mark.parametrize(("slope", "bend"), [(1.0, 0.0), (0.0, 1.0), (0.5, 2.0)])
def test_variance_of_an_offset_grid_and_of_strata(slope, bend):
    """To first order in 1 / num, for f = slope t + bend t (1 - t): what the docstring of `offset_grid` says."""
    num = 32

    def variance(name: str) -> float:
        means, sampler = [], parts.t_sampler(name, eps=0.0)
        for seed in range(4_000):
            t, weight = sampler.sample(num, generator_for("cpu", "variance", seed))
            means.append((weight * (slope * t + bend * t * (1 - t))).mean())
        return float(torch.stack(means).var())

    jitter = (slope**2 + bend**2 / 3) / num**3 / 12  # the integral of (slope + bend (1 - 2t))^2
    assert variance("stratified") == pytest.approx(jitter, rel=0.1)
    assert variance("offset_grid") == pytest.approx(slope**2 / num**2 / 12, rel=0.1, abs=0.05 * jitter)


@pytest.mark.parametrize("range_", [(0.3, 0.8), (0.45, 0.95), (0.0, 0.5), (0.5, 1.0), (0.0, 1.0), (0.6, 0.61)])
@pytest.mark.parametrize("schedule", parts.names("schedule"))
def test_clipped_covers_what_it_says_under_any_schedule(schedule, range_):
    low, high = range_
    sampler, noise = parts.t_sampler("clipped", schedule, low=low, high=high), parts.schedule(schedule)
    for law in laws.LAWS:
        asserting(law)(sampler)
    share = 1 - noise.alpha(torch.tensor(sampler.covers, dtype=torch.float64))
    most = 1 - float(noise.alpha(torch.ones(1, dtype=torch.float64)))
    assert share.tolist() == pytest.approx([low, min(high, most)], abs=1e-9)


@pytest.mark.parametrize("schedule", parts.names("schedule"))
def test_clipped_draws_mask_rates_evenly(schedule):
    """1 - alpha(t) ~ U[low, high] whatever the schedule (arXiv 2503.09573, section 5.2)."""
    t, _ = parts.t_sampler("clipped", schedule, low=0.45, high=0.95).sample(10_000, generator_for("cpu", "rates"))
    rates = (1 - parts.schedule(schedule).alpha(t)).sort().values
    assert float((rates - torch.linspace(0.45, 0.95, 10_000)).abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"low": 0.8, "high": 0.3}, "low 0.8 and high 0.3 are no range"),
        ({"low": -0.1, "high": 0.3}, "give 0 <= low < high <= 1"),
        ({"low": 0.3, "high": 1.1}, "give 0 <= low < high <= 1"),
        ({"low": 0.9995, "high": 1.0}, "the noised share at t = 1"),
    ],
)
def test_clipped_refuses_what_is_no_range(values, line):
    with pytest.raises(ValueError, match=line):
        parts.t_sampler("clipped", "log_linear", **values)


class ForgetsEps(Stratified):
    def sample(self, num, generator):
        t, weight = super().sample(num, generator)
        return t, torch.ones_like(weight)


class Squares(Stratified):
    def sample(self, num, generator):
        t, weight = super().sample(num, generator)
        return t**2, weight


class MissesTheStart(Stratified):
    """Never draws below 0.1, which t^3 hardly sees."""

    def sample(self, num, generator):
        return stretch(torch.rand(num, dtype=torch.float64, generator=generator), 0.1)


@pytest.mark.parametrize(
    ("law", "broken"),
    [
        (law_mean_is_the_integral, ForgetsEps(eps=0.3)),
        (law_mean_is_the_integral, Squares(eps=0.0)),
        (law_covers_the_range, MissesTheStart(eps=0.0)),
    ],
)
def test_law_refuses(law, broken):
    with pytest.raises(AssertionError):
        law(broken)
