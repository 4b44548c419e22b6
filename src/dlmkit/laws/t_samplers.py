"""Time samplers: a weighted mean over draws is an integral over t. t = 0 is data, t = 1 is noise."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor

from dlmkit.laws.findings import STANDARD_ERRORS, Finding, at_most, holds
from dlmkit.randomness import generator_for
from dlmkit.schedules.base import Schedule
from dlmkit.t_samplers.base import TimeSampler

NUM_DRAWS = 200_000
NUM_CELLS = 10
LEFT_OUT = 0.01
"""Times that no sampler may leave out are those with more noise than this share (or later, without a schedule)."""

ROUNDING = 1e-9
"""How far outside of its range a time may be, because an inverse was found by bisection."""

NUM_LESSONS, LESSON = 100, 256
"""Steps, and draws of each, from which a sampler that learns is taught."""

SMOOTH = {
    "t^3": (lambda t: t**3, lambda t: t**4 / 4),
    "t^2 (1 - t)": (lambda t: t**2 * (1 - t), lambda t: t**3 / 3 - t**4 / 4),
}
"""Functions that vanish at 0, where samplers leave out [0, eps], with their antiderivatives."""


def law_draws(sampler: TimeSampler) -> Iterator[Finding]:
    """T is in (0, 1], the weights are positive, both float64, and a generator makes the same draw again."""
    t, weight = sampler.sample(NUM_DRAWS, generator_for("cpu", "mean"))
    shaped = (t.shape, t.dtype) == (weight.shape, weight.dtype) == ((NUM_DRAWS,), torch.float64)
    yield holds(
        "t and weight float64 [num]",
        shaped,
        f"of {NUM_DRAWS} draws t is {t.dtype} {tuple(t.shape)}, weight {weight.dtype} {tuple(weight.shape)}",
    )
    yield at_most("t in (0, 1]", ((t <= 0) | (t > 1)).sum(), 0.0, f"t ranges over [{t.min():.3g}, {t.max():.3g}]")
    yield at_most("weight > 0", (weight <= 0).sum(), 0.0, f"the smallest weight is {weight.min():.3g}")
    (first, _), (again, _), (other, _) = (sampler.sample(16, generator_for("cpu", seed)) for seed in (1, 1, 2))
    repeats = torch.equal(first, again) and not torch.equal(first, other)
    yield holds("drawn from the generator alone", repeats, "equal generators give other times, or other ones the same")


def law_mean_is_the_integral(sampler: TimeSampler) -> Iterator[Finding]:
    """The mean of weight * f(t) is the integral of f over the range that the sampler says it covers."""
    t, weight = sampler.sample(NUM_DRAWS, generator_for("cpu", "mean"))
    first, last = sampler.covers
    for name, (function, antiderivative) in SMOOTH.items():
        integral = antiderivative(last) - antiderivative(first)
        what = f"its integral over [{first:.3g}, {last:.3g}]"
        yield _mean(f"mean of weight * {name}", weight * function(t), integral, what)


def law_covers_the_range(sampler: TimeSampler) -> Iterator[Finding]:
    """Each tenth of the range weighs its own length, from where there is noise at all, and nothing is outside of it."""
    first, last = sampler.covers
    ordered = f"covers is ({first:.3g}, {last:.3g}): give the range of t as 0 <= first < last <= 1"
    yield holds("covers is a range of [0, 1]", 0 <= first < last <= 1, ordered)
    t, weight = sampler.sample(NUM_DRAWS, generator_for("cpu", "cells"))
    outside = ((t < first - ROUNDING) | (t > last + ROUNDING)).sum()
    where = f"t ranges over [{t.min():.3g}, {t.max():.3g}], the sampler says that it covers [{first:.3g}, {last:.3g}]"
    yield at_most("no t outside of the range", outside, 0.0, where)
    start = max(first, first_noisy_time(sampler))
    edges = torch.linspace(start, last, NUM_CELLS + 1, dtype=torch.float64).tolist()
    for left, right in pairwise(edges):
        inside = (t >= left) & (t < right) if right < last else t >= left
        what = f"the length of [{left:.3g}, {right:.3g}], which draws miss or weigh wrongly"
        yield _mean("weight of each tenth of the range", weight * inside, right - left, what)


def law_learning_moves_no_mean(sampler: TimeSampler) -> Iterator[Finding]:
    """A sampler that learns keeps the laws when it has; what it has seen does not vary more than before."""
    if not _statistics(sampler, *sampler.sample(1, generator_for("cpu", "lesson"))).numel():
        return
    learned = taught(sampler)
    yield from law_mean_is_the_integral(learned)
    yield from law_covers_the_range(learned)
    before, after = (_second_moment(one) for one in (sampler, learned))
    meaning = f"the second moment of what it was taught is {after:.5g} after it has learned, {before:.5g} before"
    yield at_most("learning does not add variance", after / before, 1.05, meaning)


def uneven(t: Tensor) -> Tensor:
    """Return what a sampler is taught: a loss near 1 at small t that falls to a hundredth."""
    return torch.exp(-8.0 * t) + 0.01


def taught(sampler: TimeSampler) -> TimeSampler:
    """Return a copy of the sampler that has learned from the uneven loss."""
    learned = deepcopy(sampler)
    for step in range(NUM_LESSONS):
        t, weight = learned.sample(LESSON, generator_for("cpu", "lesson", step))
        learned.observe(_statistics(learned, t, weight))
    return learned


def _statistics(sampler: TimeSampler, t: Tensor, weight: Tensor) -> Tensor:
    loss = (weight * uneven(t))[:, None]
    return sampler.statistics(t, weight, loss, torch.ones_like(loss, dtype=torch.bool))


def _second_moment(sampler: TimeSampler) -> float:
    t, weight = sampler.sample(NUM_DRAWS, generator_for("cpu", "moment"))
    return float(((weight * uneven(t)) ** 2).mean())


def first_noisy_time(sampler: TimeSampler) -> float:
    """Return the time from which on a sampler may leave nothing out."""
    schedule = getattr(sampler, "schedule", None)
    if not isinstance(schedule, Schedule):
        return LEFT_OUT
    return float(schedule.inverse(torch.tensor([1 - LEFT_OUT], dtype=torch.float64)))


def _mean(law: str, terms: Tensor, integral: float, what: str) -> Finding:
    error = float(terms.mean()) - integral
    slack = STANDARD_ERRORS * float(terms.std()) / len(terms) ** 0.5
    meaning = f"{law} is {float(terms.mean()):.5g}, not {integral:.5g}, {what}: the loss is off by as much"
    return at_most(law, abs(error), slack, meaning)


LAWS = [law_draws, law_mean_is_the_integral, law_covers_the_range, law_learning_moves_no_mean]
