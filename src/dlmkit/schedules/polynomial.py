"""alpha(t) = 1 - t^power."""

from typing import Annotated

from torch import Tensor

from dlmkit.ranges import Range, checked
from dlmkit.schedules.base import Schedule


class Polynomial(Schedule):
    """alpha(t) = 1 - t^power; power 1 is `linear`.

    Source: arXiv 2406.04329 (MD4), section 3.

    Args:
        power: above 1 little is masked for most of the time, below 1 much is; in [0.1, 10], since beyond alpha is
            constant but for a sliver of the times, and no grid of times finds the rest of the bound.
    """

    @checked
    def __init__(self, power: Annotated[float, Range("[0.1, 10]", "alpha must fall with t, try 2")]) -> None:
        self.power = power

    def alpha(self, t: Tensor) -> Tensor:
        """Return 1 - t^power."""
        return 1.0 - t**self.power

    def derivative(self, t: Tensor) -> Tensor:
        """Return -power t^(power - 1)."""
        return -self.power * t ** (self.power - 1.0)
