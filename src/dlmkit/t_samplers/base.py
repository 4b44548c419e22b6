"""The seam of time samplers."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from dlmkit.schedules.base import Schedule


class TimeSampler(ABC):
    """Draws the times of one whole global batch (all ranks, all accumulation steps), float64 on the CPU.

    Every rank draws the same vector from the same seed and takes every R-th entry of it, so that each sees the whole
    range of t and the union does not depend on how the batch is split.

    Law (dlmkit.laws.t_samplers): the mean of weight * f(t) is the integral of f over `covers`.
    """

    @property
    def covers(self) -> tuple[float, float]:
        """The range of t that the mean is the integral over, up to an eps.

        One that is narrower than [0, 1] says that the training loss is not the bound, on purpose; evaluation has times
        of its own and is the bound whatever this says.
        """
        return (0.0, 1.0)

    @abstractmethod
    def sample(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return (t, weight), float64 [num]: t in (0, 1], weight = 1 / density at t."""

    def statistics(self, t: Tensor, weight: Tensor, loss: Tensor, scored: Tensor) -> Tensor:
        """Return what `observe` wants to know of a micro-batch, as sums: float64 [S] on the CPU, S = 0 for nothing.

        Args:
            t: times as they were drawn, [B], or [B, K] where each of K equal parts of a sequence has its own.
            weight: like t, as drawn with it; `loss` contains it as a factor.
            loss: of each token, nats, [B, L], zero where nothing is scored.
            scored: bool [B, L].
        """
        return torch.zeros(0, dtype=torch.float64)

    def observe(self, statistics: Tensor) -> None:  # noqa: B027 (most samplers learn nothing)
        """Learn from `statistics` [S], added up over all ranks and accumulation steps; once per optimizer step.

        Between two calls, `sample` depends on its arguments alone.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Return what was learned, for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Put back what `state_dict` returned."""


def check_eps(eps: float) -> None:
    """Raise ValueError unless 0 <= eps < 1."""
    if not 0.0 <= eps < 1.0:
        raise ValueError(f"eps {eps} is outside [0, 1): it is the smallest t that is drawn, try 1e-3 (or 0)")


def stretch(u: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Map u in [0, 1) to t in (eps, 1]; the weight 1 - eps makes the mean the integral over [eps, 1]."""
    t = 1.0 - (1.0 - eps) * u
    return t, torch.full_like(t, 1.0 - eps)


def even_in_alpha(
    schedule: Schedule, top: float, bottom: float, num: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return stratified draws of alpha(t) from [bottom, top] as (t, weight), weight = (top - bottom) / -alpha'(t)."""
    t = schedule.inverse(bottom + (top - bottom) * strata(num, generator))
    return t, (top - bottom) / -schedule.derivative(t)


def strata(num: int, generator: torch.Generator) -> Tensor:
    """Return one uniform draw from each of `num` equal cells of [0, 1), float64, starting at a random cell.

    In order but for the start, so that every R-th entry (a rank's share) has one draw in each R-fold cell; the random
    start gives each row of the batch every cell equally often.
    """
    start = torch.randint(num, (1,), generator=generator)
    jitter = torch.rand(num, dtype=torch.float64, generator=generator)
    return ((torch.arange(num) + start) % num + jitter) / num
