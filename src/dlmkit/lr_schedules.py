"""Learning-rate factors as functions of the optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable

LRSchedule = Callable[[int], float]


class WarmupCosine:
    """Linear warm-up over `warmup_steps`, then a cosine down to `final` of the peak at `num_steps`.

    Args:
        num_steps: steps of the run.
        warmup_steps: the first steps, at most `num_steps`.
        final: factor at the end, in [0, 1].
    """

    def __init__(self, num_steps: int, warmup_steps: int, final: float) -> None:
        _check_warmup(warmup_steps, num_steps)
        if not 0.0 <= final <= 1.0:
            raise ValueError(f"final {final} is outside [0, 1]: it is the last factor on the learning rate, try 0.1")
        self.num_steps, self.warmup_steps, self.final = num_steps, warmup_steps, final

    def __call__(self, step: int) -> float:
        """Return the factor for the update that follows `step` finished ones."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = min((step - self.warmup_steps) / max(self.num_steps - self.warmup_steps, 1), 1.0)
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * progress))


class WarmupConstant:
    """Linear warm-up over `warmup_steps`, then the peak.

    Args:
        num_steps: steps of the run.
        warmup_steps: the first steps, at most `num_steps`.
    """

    def __init__(self, num_steps: int, warmup_steps: int) -> None:
        _check_warmup(warmup_steps, num_steps)
        self.warmup_steps = warmup_steps

    def __call__(self, step: int) -> float:
        """Return the factor for the update that follows `step` finished ones."""
        return min((step + 1) / max(self.warmup_steps, 1), 1.0)


def _check_warmup(warmup_steps: int, num_steps: int) -> None:
    if not 0 <= warmup_steps <= num_steps:
        raise ValueError(
            f"warmup_steps {warmup_steps} is outside 0 to the run's {num_steps} steps: lower lr_schedule.warmup_steps,"
            " or raise budget.tokens"
        )
