"""Time samplers: a weighted mean over draws is an integral over t. t = 0 is data, t = 1 is noise."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor

from dlmkit.laws.findings import STANDARD_ERRORS, Finding, at_most, holds, law
from dlmkit.randomness import generator_for
from dlmkit.schedules.base import Schedule
from dlmkit.t_samplers.base import TimeSampler
from dlmkit.types import Noised, StepOutput, TimeDraw

NUM_DRAWS = 200_000
NUM_CELLS = 10
LEFT_OUT = 0.01
"""Times with a mask rate above this (or later than this, without a schedule) may not be left out by any sampler."""

ROUNDING = 1e-9
"""How far outside of its range a time may be, because an inverse was found by bisection."""

NUM_UPDATES, DRAWS_PER_UPDATE = 100, 256
"""Steps, and draws of each, that a sampler with state is fitted on."""

SMOOTH = {
    "t^3": (lambda t: t**3, lambda t: t**4 / 4),
    "t^2 (1 - t)": (lambda t: t**2 * (1 - t), lambda t: t**3 / 3 - t**4 / 4),
}
"""Functions that vanish at 0, where samplers leave out [0, eps], with their antiderivatives."""


@law()
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


@law()
def law_mean_is_the_integral(sampler: TimeSampler) -> Iterator[Finding]:
    """The mean of weight * f(t) is the integral of f over the sampler's support."""
    t, weight = sampler.sample(NUM_DRAWS, generator_for("cpu", "mean"))
    first, last = sampler.support
    for name, (function, antiderivative) in SMOOTH.items():
        integral = antiderivative(last) - antiderivative(first)
        what = f"its integral over [{first:.3g}, {last:.3g}]"
        yield _mean(f"mean of weight * {name}", weight * function(t), integral, what)


@law()
def law_covers_the_support(sampler: TimeSampler) -> Iterator[Finding]:
    """Each tenth of the support has the weight of its length, from where there is noise; no t is outside."""
    first, last = sampler.support
    ordered = f"support is ({first:.3g}, {last:.3g}): give the range of t as 0 <= first < last <= 1"
    yield holds("support is a range of [0, 1]", 0 <= first < last <= 1, ordered)
    t, weight = sampler.sample(NUM_DRAWS, generator_for("cpu", "cells"))
    outside = ((t < first - ROUNDING) | (t > last + ROUNDING)).sum()
    where = f"t ranges over [{t.min():.3g}, {t.max():.3g}], the support is [{first:.3g}, {last:.3g}]"
    yield at_most("no t outside of the support", outside, 0.0, where)
    start = max(first, first_noisy_time(sampler))
    edges = torch.linspace(start, last, NUM_CELLS + 1, dtype=torch.float64).tolist()
    for left, right in pairwise(edges):
        inside = (t >= left) & (t < right) if right < last else t >= left
        what = f"the length of [{left:.3g}, {right:.3g}], which draws miss or give a wrong weight"
        yield _mean("weight of each tenth of the support", weight * inside, right - left, what)


def _stateless(sampler: TimeSampler) -> str | None:
    learns = _collected(sampler, sampler.sample(1, generator_for("cpu", "update"))).numel()
    return None if learns else "it learns nothing from the losses"


@law(unless=_stateless)
def law_learning_moves_no_mean(sampler: TimeSampler) -> Iterator[Finding]:
    """A sampler that learns keeps the laws after learning, and the variance on what it was fitted to does not grow."""
    fitted = fit_to_uneven_loss(sampler)
    yield from law_mean_is_the_integral(fitted)
    yield from law_covers_the_support(fitted)
    before, after = (_second_moment(one) for one in (sampler, fitted))
    meaning = f"the second moment of the loss that it was fitted to is {after:.5g} after learning, {before:.5g} before"
    yield at_most("learning does not add variance", after / before, 1.05, meaning)


@law(unless=_stateless)
def law_state_is_saved(sampler: TimeSampler) -> Iterator[Finding]:
    """A fresh sampler that loads the state of one that has learned draws the same times."""
    fitted, restored = fit_to_uneven_loss(sampler), deepcopy(sampler)
    restored.load_state_dict(deepcopy(fitted.state_dict()))
    (t, weight), (again, same) = (one.sample(64, generator_for("cpu", "state")) for one in (fitted, restored))
    equal = torch.equal(t, again) and torch.equal(weight, same)
    yield holds("state_dict restores the sampler", equal, "after load_state_dict the draws differ: a resumed run moves")


def uneven_loss(t: Tensor) -> Tensor:
    """Return a loss near 1 at small t that falls to a hundredth."""
    return torch.exp(-8.0 * t) + 0.01


def fit_to_uneven_loss(sampler: TimeSampler) -> TimeSampler:
    """Return a copy of the sampler that was updated with the uneven loss."""
    fitted = deepcopy(sampler)
    for step in range(NUM_UPDATES):
        fitted.update(_collected(fitted, fitted.sample(DRAWS_PER_UPDATE, generator_for("cpu", "update", step))))
    return fitted


def _collected(sampler: TimeSampler, draw: TimeDraw) -> Tensor:
    loss = (draw.weight * uneven_loss(draw.t))[:, None]
    tokens, scored = torch.zeros(loss.shape, dtype=torch.int64), torch.ones_like(loss, dtype=torch.bool)
    return sampler.collect(StepOutput(draw, loss, Noised(tokens, tokens, draw.t, scored, draw.weight), scored))


def _second_moment(sampler: TimeSampler) -> float:
    t, weight = sampler.sample(NUM_DRAWS, generator_for("cpu", "moment"))
    return float(((weight * uneven_loss(t)) ** 2).mean())


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


LAWS = [
    law_draws,
    law_mean_is_the_integral,
    law_covers_the_support,
    law_learning_moves_no_mean,
    law_state_is_saved,
]
