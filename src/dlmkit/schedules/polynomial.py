"""alpha(t) = 1 - t^power."""

from torch import Tensor

from dlmkit.schedules.base import Schedule


class Polynomial(Schedule):
    """alpha(t) = 1 - t^power; power 1 is `linear`.

    Source: arXiv 2406.04329 (MD4), section 3.

    Args:
        power: > 0; above 1 little is masked for most of the time, below 1 much is.
    """

    def __init__(self, power: float) -> None:
        if power <= 0:
            raise ValueError(f"power {power} is not positive: alpha must fall with t, try power=2")
        self.power = power

    def alpha(self, t: Tensor) -> Tensor:
        """Return 1 - t^power."""
        return 1.0 - t**self.power

    def derivative(self, t: Tensor) -> Tensor:
        """Return -power t^(power - 1)."""
        return -self.power * t ** (self.power - 1.0)
