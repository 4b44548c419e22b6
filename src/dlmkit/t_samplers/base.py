"""The interface of time samplers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from dlmkit.parts import Part
from dlmkit.ranges import Range
from dlmkit.schedules.base import Schedule
from dlmkit.types import TimeDraw

SmallestTime = Annotated[float, Range("[0, 0.5]", "it is the smallest t that is drawn, try 1e-3 (or 0)")]


class Support(NamedTuple):
    """A range of times, 0 <= first < last <= 1."""

    first: float
    last: float


class TimeSampler(Part, ABC):
    """Draws the times of one whole global batch (all ranks, all accumulation steps), float64 on the CPU.

    Every rank draws the same vector from the same seed. A micro-batch takes every R-th entry of it, R being the
    number of ranks times the accumulation steps: it covers the whole range of t, and the union does not depend on how
    the batch is split.

    Law (dlmkit.laws.t_samplers): the mean of weight * f(t) is the integral of f over `support`.
    """

    group = "t_sampler"

    @property
    def support(self) -> Support:
        """The range of t that the mean is the integral over, up to an eps.

        With a support narrower than [0, 1] the training loss is not the bound, on purpose; evaluation has times of its
        own and is always the bound.
        """
        return Support(0.0, 1.0)

    @abstractmethod
    def sample(self, num: int, generator: torch.Generator) -> TimeDraw:
        """Return (t, weight), float64 [num]: t in (0, 1], weight = 1 / density at t."""


def rescale_to_eps(u: Tensor, eps: float) -> TimeDraw:
    """Map u in [0, 1) to t in (eps, 1]; the weight 1 - eps makes the mean the integral over [eps, 1]."""
    t = 1.0 - (1.0 - eps) * u
    return TimeDraw(t, torch.full_like(t, 1.0 - eps))


def stratified_in_alpha(
    schedule: Schedule, top: float, bottom: float, num: int, generator: torch.Generator
) -> TimeDraw:
    """Return stratified draws of alpha(t) from [bottom, top] as (t, weight), weight = (top - bottom) / -alpha'(t)."""
    t = schedule.inverse(bottom + (top - bottom) * stratified_uniform(num, generator))
    return TimeDraw(t, (top - bottom) / -schedule.derivative(t))


def stratified_uniform(num: int, generator: torch.Generator) -> Tensor:
    """Return one uniform draw from each of `num` equal cells of [0, 1), float64, starting at a random cell.

    In order but for the start, so that every R-th entry (the share of a micro-batch) has one draw in each cell R times
    as wide; with the random start each row of the batch gets every cell equally often.
    """
    start = torch.randint(num, (1,), generator=generator)
    jitter = torch.rand(num, dtype=torch.float64, generator=generator)
    return ((torch.arange(num) + start) % num + jitter) / num
