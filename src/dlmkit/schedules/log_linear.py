"""alpha(t) = 1 - (1 - eps) t: total noise -log alpha linear in log time."""

from torch import Tensor, full_like

from dlmkit.ranges import checked
from dlmkit.schedules.base import Schedule, SignalLeft


class LogLinear(Schedule):
    """alpha(t) = 1 - (1 - eps) t.

    The name is that of the total noise, sigma(t) = -log(1 - (1 - eps) t). Source: arXiv 2310.16834 (SEDD), section 5;
    arXiv 2406.07524 (MDLM), appendix on schedules.

    Args:
        eps: share of tokens still clean at t = 1, in [0, 0.5].
    """

    @checked
    def __init__(self, eps: SignalLeft) -> None:
        self.eps = eps

    def alpha(self, t: Tensor) -> Tensor:
        """Return 1 - (1 - eps) t."""
        return 1.0 - (1.0 - self.eps) * t

    def derivative(self, t: Tensor) -> Tensor:
        """Return -(1 - eps)."""
        return full_like(t, -(1.0 - self.eps))
