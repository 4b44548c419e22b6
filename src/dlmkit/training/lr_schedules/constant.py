"""Warm-up, then a constant."""

from __future__ import annotations

from dlmkit.ranges import Count, checked
from dlmkit.training.lr_schedules.base import WarmupSteps, check_warmup


class WarmupConstant:
    """Linear warm-up over `warmup_steps`, then the peak.

    Args:
        num_steps: steps of the run.
        warmup_steps: the first steps, at most `num_steps`.
    """

    @checked
    def __init__(self, num_steps: Count, warmup_steps: WarmupSteps) -> None:
        check_warmup(warmup_steps, num_steps)
        self.warmup_steps = warmup_steps

    def __call__(self, step: int) -> float:
        """Return the factor for the update that follows `step` finished ones."""
        return min((step + 1) / max(self.warmup_steps, 1), 1.0)
