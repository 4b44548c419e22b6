"""Times spread evenly over the mask rate instead of over t."""

import torch

from dlmkit.ranges import checked
from dlmkit.schedules.base import Schedule
from dlmkit.t_samplers.base import SmallestTime, TimeSampler, stratified_in_alpha
from dlmkit.types import TimeDraw


class Importance(TimeSampler):
    """Stratified draws of alpha(t), that is, density proportional to -alpha'(t).

    The masked bound integrates -alpha'(t) * (mean cross-entropy at the masked tokens), so under this density every
    schedule is trained as the linear one is: the bound does not depend on the schedule (arXiv 2406.07524, section 3),
    and with this sampler its variance does not either.

    Args:
        schedule: alpha(t), the one that the process uses.
        eps: smallest mask rate 1 - alpha that is drawn, in [0, 0.5].
    """

    @checked
    def __init__(self, schedule: Schedule, eps: SmallestTime) -> None:
        self.schedule = schedule
        self.eps = eps

    def sample(self, num: int, generator: torch.Generator) -> TimeDraw:
        """Return draws with weight = (range of alpha) / -alpha'(t)."""
        ends = self.schedule.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64))
        return stratified_in_alpha(self.schedule, float(ends[0]) - self.eps, float(ends[1]), num, generator)
