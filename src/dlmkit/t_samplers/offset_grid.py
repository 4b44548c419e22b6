"""An even grid of times, shifted as a whole by one uniform draw."""

import torch

from dlmkit.ranges import checked
from dlmkit.t_samplers.base import SmallestTime, TimeSampler, rescale_to_eps
from dlmkit.types import TimeDraw


class OffsetGrid(TimeSampler):
    """t_i from frac(u + i / num) with one u ~ U(0, 1) for the global batch, rescaled to [eps, 1].

    Each t_i is uniform, so the mean is unbiased. Its variance for an integrand f is ((f(1) - f(0)) / num)^2 / 12 to
    first order, against (integral of f'^2) / num^3 / 12 for independent jitter in each cell (`stratified`): less where
    f ends near where it began, more where it climbs from one end to the other.

    Source: arXiv 2406.04329 (MD4), appendix; arXiv 2107.00630 (VDM), appendix I.1.

    Args:
        eps: smallest t, in [0, 0.5]; the integral over [0, eps] is left out of the training loss.
    """

    @checked
    def __init__(self, eps: SmallestTime) -> None:
        self.eps = eps

    def sample(self, num: int, generator: torch.Generator) -> TimeDraw:
        """Return one draw per cell, all at the same place in their cells."""
        offset = torch.rand(1, dtype=torch.float64, generator=generator)
        return rescale_to_eps(torch.frac(offset + torch.arange(num, dtype=torch.float64) / num), self.eps)
