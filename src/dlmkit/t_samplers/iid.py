"""Independent uniform times."""

import torch

from dlmkit.ranges import checked
from dlmkit.t_samplers.base import SmallestTime, TimeSampler, rescale_to_eps
from dlmkit.types import TimeDraw


class IID(TimeSampler):
    """t ~ U(eps, 1), independent for each sequence. Source: arXiv 2410.17891, algorithm 1 (eps = 1e-3 in its code).

    Args:
        eps: smallest t, in [0, 0.5]; the integral over [0, eps] is left out of the training loss.
    """

    @checked
    def __init__(self, eps: SmallestTime) -> None:
        self.eps = eps

    def sample(self, num: int, generator: torch.Generator) -> TimeDraw:
        """Return independent draws."""
        return rescale_to_eps(torch.rand(num, dtype=torch.float64, generator=generator), self.eps)
