"""Times from a middle range of noise alone, for training."""

from typing import Annotated

import torch

from dlmkit.ranges import Range, checked
from dlmkit.schedules.base import Schedule
from dlmkit.t_samplers.base import Support, TimeSampler, stratified_in_alpha
from dlmkit.types import TimeDraw

MaskRate = Annotated[float, Range("[0, 1]", "it is an end of the range of mask rates, such as 0.3 or 0.8")]


class Clipped(TimeSampler):
    """Stratified draws of the mask rate 1 - alpha(t) from [low, high], that is, density -alpha'(t) / (high - low).

    A training choice, and biased on purpose: the mean of weight * f(t) is the integral over the times in the range and
    leaves out the others, where next to nothing or nearly everything is noise and gradients vary most. The loss and
    the nll that training logs are over that range only, and smaller than the bound; `val/nll` is the bound over all t,
    because evaluation has a grid of its own.

    Source: arXiv 2503.09573 (BD3-LM), section 5.2. Its tables 2 and 8 find the best range to depend on the block size:
    [0, 0.5] for blocks of 128 tokens, [0.3, 0.8] for 16, [0.45, 0.95] for 4. It searches for the range during training;
    here the range is given and stays.

    Args:
        schedule: alpha(t), the one that the process uses.
        low: smallest mask rate that is drawn, at least 0.
        high: largest, at most 1; where alpha(1) > 0, what there is of noise at t = 1 if that is less.

    Raises:
        ValueError: the range is empty, or is none of [0, 1]; when times are drawn, `schedule` never gets there.
    """

    @checked
    def __init__(self, schedule: Schedule, low: MaskRate, high: MaskRate) -> None:
        if not low < high:
            raise ValueError(
                f"low {low} and high {high} are no range of the mask rate: give 0 <= low < high <= 1, such as"
                " 0.3 and 0.8"
            )
        self.schedule = schedule
        self.low = low
        self.high = high

    @property
    def support(self) -> Support:
        """The times at which the mask rate is `low` and `high`."""
        first, last = self.schedule.inverse(torch.tensor(self._alphas(), dtype=torch.float64)).tolist()
        return Support(first if self.low > 0.0 else 0.0, last)

    def sample(self, num: int, generator: torch.Generator) -> TimeDraw:
        """Return draws with weight = (high - low) / -alpha'(t)."""
        top, bottom = self._alphas()
        return stratified_in_alpha(self.schedule, top, bottom, num, generator)

    def _alphas(self) -> tuple[float, float]:
        """Return alpha where the range begins and where it ends."""
        least = float(self.schedule.alpha(torch.ones((), dtype=torch.float64)))
        if 1.0 - self.low <= least:
            raise ValueError(
                f"low {self.low} is not below {1.0 - least:.4g}, the mask rate at t = 1: lower it, such as to 0.3"
            )
        return 1.0 - self.low, max(1.0 - self.high, least)
