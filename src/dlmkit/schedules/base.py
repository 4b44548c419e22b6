"""The interface of noise schedules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

import torch
from torch import Tensor

from dlmkit.parts import Part
from dlmkit.ranges import Range

SignalLeft = Annotated[float, Range("[0, 0.5]", "it is a share of signal left at t = 1, try 1e-3")]


class Schedule(Part, ABC):
    """alpha(t): the probability that a token is still clean at time t; t = 0 is data, t = 1 is noise.

    Laws (dlmkit.laws.schedules): alpha(0) = 1, alpha(1) ~ 0, non-increasing, `derivative` = autograd.
    """

    group = "schedule"

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Return alpha(t), same shape and dtype as `t`, in [0, 1]; `t` is in [0, 1]."""

    def derivative(self, t: Tensor) -> Tensor:
        """Return d alpha / dt at `t`, same shape; by autograd unless a subclass has a closed form.

        Forward mode, because Lightning validates in inference mode, where nothing can be differentiated backwards.
        """
        slope: Tensor = torch.func.jvp(self.alpha, (t,), (torch.ones_like(t),))[1]
        return slope

    def inverse(self, alpha: Tensor) -> Tensor:
        """Return the t in [0, 1] with alpha(t) = `alpha` (float64, any shape), by bisection to 1e-12.

        Where alpha(t) is constant it is the least such t; an `alpha` outside [alpha(1), alpha(0)] gives 0 or 1.
        """
        low, high = torch.zeros_like(alpha), torch.ones_like(alpha)
        for _ in range(42):
            middle = (low + high) / 2
            above = self.alpha(middle) > alpha
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return (low + high) / 2
