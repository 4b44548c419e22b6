"""Planted errors in time samplers."""

from __future__ import annotations

import torch

from dlmkit.laws import t_samplers as laws
from dlmkit.laws.t_samplers import (
    law_covers_the_support,
    law_draws,
    law_learning_moves_no_mean,
    law_mean_is_the_integral,
    law_state_is_saved,
)
from dlmkit.schedules.cosine_mdlm import CosineMDLM
from dlmkit.schedules.linear import Linear
from dlmkit.t_samplers.base import Support, rescale_to_eps
from dlmkit.t_samplers.clipped import Clipped
from dlmkit.t_samplers.iid import IID
from dlmkit.t_samplers.importance import Importance
from dlmkit.t_samplers.learned import Learned
from dlmkit.t_samplers.stratified import Stratified
from dlmkit.types import TimeDraw
from laws.mutants.base import Mutant, RightPart

# Times and weights


class ForgetsWhatEpsLeavesOut(Stratified):
    def sample(self, num, generator):
        t, weight = super().sample(num, generator)
        return TimeDraw(t, torch.ones_like(weight))


class DensityNotItsInverse(Importance):
    def sample(self, num, generator):
        t, weight = super().sample(num, generator)
        return TimeDraw(t, 1 / weight)


class MissesTheStart(IID):
    """Never below 0.1, of which the integral of t^3 has hardly anything."""

    def sample(self, num, generator):
        return rescale_to_eps(torch.rand(num, dtype=torch.float64, generator=generator), 0.1)


class MissesTheEnd(IID):
    def sample(self, num, generator):
        t, weight = super().sample(num, generator)
        return TimeDraw(0.95 * t, weight)


class SquaresTheTimes(IID):
    def sample(self, num, generator):
        t, weight = super().sample(num, generator)
        return TimeDraw(t**2, weight)


class ReachesZero(IID):
    """t = 0, where the bound's weight 1 / t is infinite."""

    def sample(self, num, generator):
        t, weight = super().sample(num, generator)
        return TimeDraw(torch.where(t < 1e-2, 0.0, t), weight)


class DrawsInFloat32(IID):
    def sample(self, num, generator):
        t, weight = super().sample(num, generator)
        return TimeDraw(t.float(), weight.float())


# The support


class ClipsWithoutDeclaring(Clipped):
    """A range left out of the support that it declares."""

    support = Support(0.0, 1.0)


class ClipsMoreThanItDeclares(Clipped):
    def sample(self, num, generator):
        return Clipped(self.schedule, self.low + 0.02, self.high).sample(num, generator)


class ClipsAsIfItWereAll(Clipped):
    """The weight of draws from all of [0, 1]: the mean over the range in place of the integral."""

    def sample(self, num, generator):
        t, weight = super().sample(num, generator)
        return TimeDraw(t, weight / (self.high - self.low))


class EmptySupport(IID):
    support = Support(0.5, 0.5)


# Learning


class ForgetsItsDensity(Learned):
    """Draws from the learned density with the weights of the uniform one."""

    def sample(self, num, generator):
        t, _ = super().sample(num, generator)
        return TimeDraw(t, torch.full_like(t, 1.0 - self.eps))


class SkipsTheQuietBins(Learned):
    """No uniform share: what has little loss is never drawn again."""

    @property
    def probabilities(self):
        loud = super().probabilities
        loud = torch.where(loud < loud.mean() * 0.999, 0.0, loud)
        return loud / loud.sum()


class DrawsWhatIsQuiet(Learned):
    """The density upside down: unbiased, and worse than uniform."""

    @property
    def probabilities(self):
        quiet = 1 / super().probabilities
        return quiet / quiet.sum()


class RestoresTheCountsAlone(Learned):
    """After a restart the bins have draws and no losses."""

    def load_state_dict(self, state):
        super().load_state_dict({"drawn": state["drawn"], "sums": torch.ones_like(state["sums"])})


EPS = (1e-3,)
MIDDLE = (Linear(), 0.3, 0.8)
LEARNER = (1e-3, 16, 0.1, 0.9, 4, False)

MUTANTS = [
    Mutant(ForgetsWhatEpsLeavesOut, (0.3,), caught_by=(law_mean_is_the_integral,)),
    Mutant(
        DensityNotItsInverse,
        (CosineMDLM(1e-3), 1e-3),
        caught_by=(law_mean_is_the_integral, law_covers_the_support),
    ),
    Mutant(MissesTheStart, EPS, caught_by=(law_covers_the_support,)),
    Mutant(MissesTheEnd, EPS, caught_by=(law_covers_the_support,)),
    Mutant(SquaresTheTimes, EPS, caught_by=(law_mean_is_the_integral, law_covers_the_support)),
    Mutant(ReachesZero, EPS, caught_by=(law_draws,)),
    Mutant(DrawsInFloat32, EPS, caught_by=(law_draws,)),
    Mutant(ClipsWithoutDeclaring, MIDDLE, caught_by=(law_mean_is_the_integral, law_covers_the_support)),
    Mutant(
        ClipsWithoutDeclaring, (Linear(), 0.02, 1.0), caught_by=(law_covers_the_support,), title="ClipsTheStartAlone"
    ),
    Mutant(ClipsMoreThanItDeclares, MIDDLE, caught_by=(law_covers_the_support,)),
    Mutant(ClipsAsIfItWereAll, MIDDLE, caught_by=(law_mean_is_the_integral, law_covers_the_support)),
    Mutant(EmptySupport, EPS, caught_by=(law_covers_the_support,)),
    Mutant(ForgetsItsDensity, LEARNER, caught_by=(law_learning_moves_no_mean,)),
    Mutant(SkipsTheQuietBins, LEARNER, caught_by=(law_learning_moves_no_mean,)),
    Mutant(DrawsWhatIsQuiet, LEARNER, caught_by=(law_learning_moves_no_mean,)),
    Mutant(RestoresTheCountsAlone, LEARNER, caught_by=(law_state_is_saved,)),
]

RIGHT_PARTS = [
    RightPart(Clipped, MIDDLE, passes=tuple(laws.LAWS)),
    RightPart(Learned, LEARNER, passes=tuple(laws.LAWS)),
]
