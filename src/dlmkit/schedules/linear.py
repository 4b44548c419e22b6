"""alpha(t) = 1 - t."""

from torch import Tensor, ones_like

from dlmkit.schedules.base import Schedule


class Linear(Schedule):
    """alpha(t) = 1 - t: the masked share is the time.

    Source: arXiv 2410.17891, section 2 (the schedule of DiffuGPT and DiffuLLaMA).
    """

    def alpha(self, t: Tensor) -> Tensor:
        """Return 1 - t."""
        return 1.0 - t

    def derivative(self, t: Tensor) -> Tensor:
        """Return -1."""
        return -ones_like(t)

    def inverse(self, alpha: Tensor) -> Tensor:
        """Return 1 - alpha."""
        return 1.0 - alpha
