"""Warm-up, then a cosine."""

from __future__ import annotations

import math
from typing import Annotated

from dlmkit.ranges import Count, Range, checked
from dlmkit.training.lr_schedules.base import WarmupSteps, check_warmup


class WarmupCosine:
    """Linear warm-up over `warmup_steps`, then a cosine down to `final` of the peak at `num_steps`.

    Args:
        num_steps: steps of the run.
        warmup_steps: the first steps, at most `num_steps`.
        final: factor at the end, in [0, 1].
    """

    @checked
    def __init__(
        self,
        num_steps: Count,
        warmup_steps: WarmupSteps,
        final: Annotated[float, Range("[0, 1]", "it is the last factor on the learning rate, try 0.1")],
    ) -> None:
        check_warmup(warmup_steps, num_steps)
        self.num_steps, self.warmup_steps, self.final = num_steps, warmup_steps, final

    def __call__(self, step: int) -> float:
        """Return the factor for the update that follows `step` finished ones."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = min((step - self.warmup_steps) / max(self.num_steps - self.warmup_steps, 1), 1.0)
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * progress))
