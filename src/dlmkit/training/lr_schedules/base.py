"""What learning-rate schedules share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from dlmkit.ranges import Range

LRSchedule = Callable[[int], float]
"""From the number of finished optimizer steps to the factor for the next one."""

WarmupSteps = Annotated[int, Range("[0, 1000000000]", "use 0 for none")]


def check_warmup(warmup_steps: int, num_steps: int) -> None:
    """Raise ValueError unless the warm-up fits into the run."""
    if not 0 <= warmup_steps <= num_steps:
        raise ValueError(
            f"warmup_steps {warmup_steps} is outside 0 to the run's {num_steps} steps: lower lr_schedule.warmup_steps,"
            " or raise budget.tokens"
        )
