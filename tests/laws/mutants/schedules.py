"""Planted errors in schedules."""

from __future__ import annotations

import torch

from dlmkit.laws.schedules import (
    law_derivative,
    law_derivative_is_the_slope,
    law_falls,
    law_inverse,
    law_runs_from_data_to_noise,
    law_shape,
)
from dlmkit.schedules.base import Schedule
from dlmkit.schedules.cosine_mdlm import CosineMDLM
from dlmkit.schedules.linear import Linear
from dlmkit.schedules.log_linear import LogLinear
from laws.mutants.base import Mutant


class DerivativeWithoutEps(LogLinear):
    def derivative(self, t):
        return -torch.ones_like(t)


class Increasing(Linear):
    """From noise to data."""

    def alpha(self, t):
        return t

    def derivative(self, t):
        return torch.ones_like(t)


class Wiggles(Linear):
    """Right at both ends, and increasing in between."""

    derivative = Schedule.derivative

    def alpha(self, t):
        return 1.0 - t + 0.1 * t * (1 - t) * torch.sin(40 * torch.pi * t)


class EndsEarly(Linear):
    """alpha(1) = 0.1: a tenth of the data is left."""

    def alpha(self, t):
        return 1.0 - 0.9 * t

    def derivative(self, t):
        return torch.full_like(t, -0.9)


class NeverNoise(Linear):
    """alpha(1) = 1 / e."""

    def alpha(self, t):
        return torch.exp(-t)


class NotCleanAtZero(CosineMDLM):
    """The eps at the wrong end."""

    def alpha(self, t):
        return super().alpha(t) - self.eps


class AlwaysFloat64(Linear):
    """Whatever the dtype of t."""

    def alpha(self, t):
        return (1.0 - t).double()


class HalfDetached(Schedule):
    """Autograd finds half of the slope, and so does the derivative that is made by it."""

    def alpha(self, t):
        return 1.0 - 0.5 * t.detach() - 0.5 * t


class WrongInverse(Linear):
    def inverse(self, alpha):
        return alpha


class CoarseInverse(Linear):
    """Rounded to float32."""

    def inverse(self, alpha):
        return (1.0 - alpha).float().double()


MUTANTS = [
    Mutant(DerivativeWithoutEps, (0.1,), caught_by=(law_derivative, law_derivative_is_the_slope)),
    Mutant(DerivativeWithoutEps, (1e-3,), caught_by=(law_derivative,), title="DerivativeWithoutSmallEps"),
    Mutant(Increasing, caught_by=(law_runs_from_data_to_noise, law_falls)),
    Mutant(Wiggles, caught_by=(law_falls,)),
    Mutant(EndsEarly, caught_by=(law_runs_from_data_to_noise,)),
    Mutant(NeverNoise, caught_by=(law_runs_from_data_to_noise,)),
    Mutant(LogLinear, (0.01,), caught_by=(law_runs_from_data_to_noise,), title="LogLinearWithLargeEps"),
    Mutant(NotCleanAtZero, (1e-3,), caught_by=(law_runs_from_data_to_noise,)),
    Mutant(AlwaysFloat64, caught_by=(law_shape,)),
    Mutant(HalfDetached, caught_by=(law_derivative_is_the_slope,)),
    Mutant(WrongInverse, caught_by=(law_inverse,)),
    Mutant(CoarseInverse, caught_by=(law_inverse,)),
]
