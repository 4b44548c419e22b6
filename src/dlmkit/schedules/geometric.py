"""alpha(t) = exp(-sigma(t)) with sigma growing geometrically."""

import math
from typing import Annotated

from torch import Tensor, exp

from dlmkit.ranges import Range, checked
from dlmkit.schedules.base import Schedule


class Geometric(Schedule):
    """alpha(t) = exp(sigma_min - sigma_min^(1 - t) sigma_max^t).

    Source: arXiv 2310.16834 (SEDD), section 5, whose total noise starts at sigma_min; here sigma_min is subtracted,
    so that alpha(0) = 1 and the reconstruction term of the bound is zero.

    Args:
        sigma_min: noise scale near the data, in [1e-10, 1].
        sigma_max: noise scale at t = 1, in [1, 1e4] and above sigma_min; exp(-sigma_max) of the tokens stay clean.
    """

    @checked
    def __init__(
        self,
        sigma_min: Annotated[float, Range("[1e-10, 1]", "try 1e-4")],
        sigma_max: Annotated[float, Range("[1, 1e4]", "try 20")],
    ) -> None:
        if not sigma_min < sigma_max:
            raise ValueError(
                f"sigma_min {sigma_min} and sigma_max {sigma_max} break sigma_min < sigma_max: try 1e-4 and 20"
            )
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def alpha(self, t: Tensor) -> Tensor:
        """Return exp(-(sigma(t) - sigma(0)))."""
        return exp(self.sigma_min - self._sigma(t))

    def derivative(self, t: Tensor) -> Tensor:
        """Return -alpha(t) sigma(t) log(sigma_max / sigma_min)."""
        return -self.alpha(t) * self._sigma(t) * math.log(self.sigma_max / self.sigma_min)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t
