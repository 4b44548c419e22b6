"""alpha(t) = eps + (1 - eps) cos(pi t / 2)."""

import math

from torch import Tensor, cos, sin

from dlmkit.ranges import checked
from dlmkit.schedules.base import Schedule, SignalLeft


class CosineMDLM(Schedule):
    """alpha(t) = eps + (1 - eps) cos(pi t / 2): slow near the data (slope 0), fast near the noise.

    Source: arXiv 2406.07524 (MDLM), appendix on schedules ("cosine"). Not `cosine`, which is MD4's.

    Args:
        eps: share of tokens still clean at t = 1, in [0, 0.5].
    """

    @checked
    def __init__(self, eps: SignalLeft) -> None:
        self.eps = eps

    def alpha(self, t: Tensor) -> Tensor:
        """Return eps + (1 - eps) cos(pi t / 2)."""
        return self.eps + (1.0 - self.eps) * cos(0.5 * math.pi * t)

    def derivative(self, t: Tensor) -> Tensor:
        """Return -(1 - eps) pi/2 sin(pi t / 2)."""
        return -(1.0 - self.eps) * 0.5 * math.pi * sin(0.5 * math.pi * t)
