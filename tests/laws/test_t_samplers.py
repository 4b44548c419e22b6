"""Time samplers: a weighted mean over draws is an integral over t, and every share of a batch covers the range."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dlmkit.laws import t_samplers as laws
from dlmkit.laws.findings import STANDARD_ERRORS
from dlmkit.laws.statistics import chi_square_p
from dlmkit.randomness import generator_for
from dlmkit.t_samplers.base import TimeSampler, stratified_uniform
from dlmkit.t_samplers.learned import Learned
from dlmkit.types import Noised, StepOutput, TimeDraw
from laws import parts
from laws.asserting import asserting

CASES = parts.with_schedules("t_sampler")
WITH_EPS = parts.params(case for case in CASES if parts.takes("t_sampler", case[0], "eps"))
CELLS = parts.params(case for case in CASES if case[0] != "iid")
STATELESS = [law for law in laws.LAWS if law.why_not(parts.t_sampler("stratified")) is None]
"""The laws of time samplers that do not learn."""


def output_of(t: Tensor, weight: Tensor, loss: Tensor, scored: Tensor) -> StepOutput:
    """What training hands to `collect`."""
    tokens = torch.zeros(scored.shape, dtype=torch.int64)
    return StepOutput(TimeDraw(t, weight), loss, Noised(tokens, tokens, t, scored, weight), scored)


@pytest.mark.parametrize(("law", "case"), parts.applying(laws.LAWS, CASES, lambda *case: (parts.t_sampler(*case),)))
def test_t_sampler(law, case):
    asserting(law)(parts.t_sampler(*case))


@pytest.mark.parametrize(("name", "schedule"), WITH_EPS)
def test_weights_take_eps_into_account(name, schedule):
    """eps = 0.3 would show a missing (1 - eps); the integral over [0.8, 1] does not depend on eps."""
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


def test_every_row_gets_every_cell():
    """Row i of a batch is not tied to a time: over steps it is in each cell equally often."""
    draws = torch.stack([stratified_uniform(8, generator_for("cpu", "rows", step)) for step in range(2_000)])
    for row in (0, 3, 7):
        counts = torch.bincount((draws[:, row] * 8).long(), minlength=8)
        assert chi_square_p(counts, torch.full((8,), 2_000 / 8)) > 1e-6


@pytest.mark.long
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
def test_support_of_clipped_is_its_range_under_any_schedule(schedule, range_):
    low, high = range_
    sampler, noise = parts.t_sampler("clipped", schedule, low=low, high=high), parts.schedule(schedule)
    for law in STATELESS:
        asserting(law)(sampler)
    share = 1 - noise.alpha(torch.tensor(sampler.support, dtype=torch.float64))
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
        ({"low": -0.1, "high": 0.3}, r"low -0.1 is outside \[0, 1\]"),
        ({"low": 0.3, "high": 1.1}, r"high 1.1 is outside \[0, 1\]"),
        ({"low": 0.9995, "high": 1.0}, "the mask rate at t = 1"),
    ],
)
def test_clipped_refuses_an_empty_range(values, line):
    with pytest.raises(ValueError, match=line):
        parts.t_sampler("clipped", "log_linear", **values).sample(1, generator_for("cpu", 0))


def spiked(num_bins: int = 8, uniform_share: float = 0.1) -> Learned:
    """Nearly all of the density in one bin, nothing but the uniform share in the others."""
    sampler = Learned(1e-3, num_bins, uniform_share, decay=0.9, warmup_draws=1, by_variance=False)
    sums = torch.zeros(3, num_bins, dtype=torch.float64)
    sums[0], sums[1:, 2] = 1.0, 10.0
    sampler.update(sums.flatten())
    return sampler


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("uniform_share", [0.1, 1e-3])
def test_learned_keeps_the_laws_in_a_very_uneven_state(uniform_share, law):
    sampler = spiked(uniform_share=uniform_share)
    share = uniform_share / 8
    assert sampler.probabilities.tolist() == pytest.approx([share] * 2 + [1 - 7 * share] + [share] * 5)
    asserting(law)(sampler)


def test_learned_draws_as_stratified_until_it_has_learned():
    """Every bin has been drawn from but the last, which is one draw short."""
    sampler = parts.t_sampler("learned", num_bins=4, warmup_draws=3)
    sampler.update(torch.tensor([9.0, 9.0, 9.0, 2.0, *[1.0] * 4, 5.0, 4.0, 3.0, 2.0], dtype=torch.float64))
    drawn = (one.sample(50, generator_for("cpu", "warm-up")) for one in (sampler, parts.t_sampler("stratified")))
    torch.testing.assert_close(*drawn, rtol=1e-12, atol=0)
    sampler.update(torch.tensor([0.0, 0.0, 0.0, 1.0] * 3, dtype=torch.float64))
    assert float(sampler.sample(50, generator_for("cpu", "warm-up"))[1].std()) > 0


@pytest.mark.parametrize("num_shares", [1, 2, 8])
def test_learned_is_stratified_in_any_state(num_shares):
    """One draw in each of 64 cells of equal probability, and in each R-fold cell for rank r of R."""
    sampler = laws.fit_to_uneven_loss(parts.t_sampler("learned"))
    t, weight = sampler.sample(64, generator_for("cpu", "strata"))
    ends = torch.cat([torch.zeros(1, dtype=torch.float64), sampler.probabilities.cumsum(0)])
    place = (t - sampler.eps) / (1 - sampler.eps) * sampler.num_bins
    bins = place.long().clamp_max(sampler.num_bins - 1)
    cell = (64 * (ends[bins] + sampler.probabilities[bins] * (place - bins))).long()
    for share in range(num_shares):
        assert sorted((cell[share::num_shares] // num_shares).tolist()) == list(range(64 // num_shares))
    density = sampler.probabilities[bins] * sampler.num_bins / (1 - sampler.eps)
    torch.testing.assert_close(weight, 1 / density, rtol=1e-12, atol=0)
    assert float(weight.max()) <= 1 / sampler.uniform_share


class CollectsTheWeight(Learned):
    def collect(self, output):
        t, weight = output.draw
        return super().collect(replace(output, draw=TimeDraw(t, torch.ones_like(weight))))


LEARNER = {"eps": 0.0, "num_bins": 32, "uniform_share": 0.05, "decay": 0.99, "warmup_draws": 10}


def noisy_losses(sampler: TimeSampler, num: int, *key: int | str, mean: float) -> tuple[Tensor, Tensor, Tensor]:
    """(t, weight, weight * f) of draws with f = mean + exp(-8 t) * noise, the noise of mean 0 and variance 1."""
    t, weight = sampler.sample(num, generator_for("cpu", *key))
    noise = torch.randn(num, dtype=torch.float64, generator=generator_for("cpu", "noise", *key))
    return t, weight, weight * (mean + torch.exp(-8.0 * t) * noise)


def fit_noisily(sampler: Learned, mean: float) -> Learned:
    """The sampler after 400 steps of them."""
    for step in range(400):
        t, weight, loss = noisy_losses(sampler, 64, "step", step, mean=mean)
        sampler.update(sampler.collect(output_of(t, weight, loss[:, None], torch.ones(64, 1, dtype=torch.bool))))
    return sampler


def second_moment(sampler: TimeSampler) -> float:
    return float((noisy_losses(sampler, 200_000, "measured", mean=0.0)[2] ** 2).mean())


def test_learned_is_near_the_least_variance():
    """No density has a second moment below (integral of sqrt(E[f^2 | t]))^2 = ((1 - e^-8) / 8)^2."""
    least = ((1 - torch.tensor(-8.0).exp().item()) / 8) ** 2
    assert second_moment(Learned(**LEARNER, by_variance=False)) > 3.9 * least
    for by_variance in (False, True):  # the same where the mean is 0
        learned = fit_noisily(Learned(**LEARNER, by_variance=by_variance), mean=0.0)
        assert least < second_moment(learned) < 1.08 * least
    assert second_moment(fit_noisily(CollectsTheWeight(**LEARNER, by_variance=False), mean=0.0)) > 1.2 * least


def test_by_variance_is_near_the_least_variance_of_strata():
    """A mean that does not move with t hides the spread from the root mean square; strata take it out of the variance.

    Of n draws that is then (integral of sqrt(Var[f | t]))^2 / n at the least, by Neyman's allocation; n is large here,
    because a cell in which the density jumps sees the mean again.
    """
    least = ((1 - torch.tensor(-8.0).exp().item()) / 8) ** 2

    def variance(by_variance: bool) -> float:
        sampler = fit_noisily(Learned(**LEARNER, by_variance=by_variance), mean=1.0)
        draws = [noisy_losses(sampler, 4096, "measured", step, mean=1.0)[2].mean() for step in range(2_000)]
        return 4096 * float(torch.stack(draws).var())

    assert 0.9 * least < variance(True) < 1.25 * least
    assert variance(False) > 2 * least


def test_learned_collects_the_integrand_alone():
    """Whatever the weight and the split; a sequence's loss per scored token, and nothing where nothing is scored."""
    sampler = parts.t_sampler("learned", eps=0.0, num_bins=2)
    t = torch.tensor([0.1, 0.6, 0.7, 0.9], dtype=torch.float64)
    scored = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0]]).bool()
    integrand = torch.tensor([2.0, 3.0, 0.0, 5.0], dtype=torch.float64)
    expected = torch.tensor([1.0, 2.0, 2.0, 3.0 + 5.0, 4.0, 9.0 + 25.0], dtype=torch.float64)
    for weight in (torch.ones(4, dtype=torch.float64), torch.tensor([0.5, 2.0, 1.0, 10.0], dtype=torch.float64)):
        loss = scored * (weight * integrand)[:, None]
        torch.testing.assert_close(sampler.collect(output_of(t, weight, loss, scored)), expected, rtol=1e-12, atol=0)
        pieces = [sampler.collect(output_of(t[i::2], weight[i::2], loss[i::2], scored[i::2])) for i in (0, 1)]
        torch.testing.assert_close(sum(pieces), expected, rtol=1e-12, atol=0)
        # The same four as blocks of two sequences, each with its own time and its own number of scored tokens.
        blocks = (one.reshape(2, 2) for one in (t, weight))
        whole = (one.reshape(2, 6) for one in (loss, scored))
        torch.testing.assert_close(sampler.collect(output_of(*blocks, *whole)), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("by_variance", [False, True])
def test_learned_averages_over_the_steps_that_drew_from_a_bin(by_variance):
    sampler = Learned(eps=0.0, num_bins=2, uniform_share=0.5, decay=0.5, warmup_draws=2, by_variance=by_variance)
    steps = [([1, 2], [2.0, 1.0], [4.0, 2.0]), ([0, 3], [0.0, 2.5], [0.0, 3.0]), ([1, 0], [4.0, 0.0], [16.0, 0.0])]
    for sums in steps:
        sampler.update(torch.tensor(sums, dtype=torch.float64).flatten())
    square = [(2.0 + 16.0) / (0.5 + 1.0), (1.0 + 3.0) / (1.0 + 3.0)]
    mean = [(1.0 + 4.0) / (0.5 + 1.0), (0.5 + 2.5) / (1.0 + 3.0)] if by_variance else [0.0, 0.0]
    root = [(one - other**2) ** 0.5 for one, other in zip(square, mean, strict=True)]
    expected = [0.25 + 0.5 * one / sum(root) for one in root]
    assert sampler.probabilities.tolist() == pytest.approx(expected)
    sampler.update(torch.tensor([1.0, 1.0, 1.0, 1.0, float("inf"), float("nan")], dtype=torch.float64))
    assert sampler.probabilities.tolist() == pytest.approx(expected)


def test_learned_continues_from_its_saved_state():
    sampler = laws.fit_to_uneven_loss(parts.t_sampler("learned"))
    other = parts.t_sampler("learned")
    other.load_state_dict(sampler.state_dict())
    assert torch.equal(other.probabilities, sampler.probabilities)
    assert float(other.probabilities.max()) > 2 / other.num_bins
    with pytest.raises(ValueError, match="num_bins 8 is not the 32 of the checkpoint"):
        parts.t_sampler("learned", num_bins=8).load_state_dict(sampler.state_dict())
    with pytest.raises(ValueError, match="no learned density of t"):
        other.load_state_dict(parts.t_sampler("stratified").state_dict())


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"num_bins": 0}, r"num_bins 0 is outside \[1, "),
        ({"uniform_share": 0.0}, "uniform_share 0.0 is outside"),
        ({"decay": 1.0}, "decay 1.0 is outside"),
        ({"warmup_draws": 0}, r"warmup_draws 0 is outside \[1, "),
        ({"eps": 1.0}, "eps 1.0 is outside"),
    ],
)
def test_learned_refuses_values_outside_of_their_ranges(values, line):
    with pytest.raises(ValueError, match=line):
        parts.t_sampler("learned", **values)
