"""Planted errors in what a network's output is taken for."""

from __future__ import annotations

from dataclasses import dataclass

from dlmkit.laws.objectives import law_exact
from dlmkit.laws.processes import law_x0_prediction
from dlmkit.laws.samplers import law_distribution
from dlmkit.objectives.elbo import GenericElbo
from dlmkit.parameterizations.x0 import X0, X0LeaveOneOut
from dlmkit.processes.absorbing import Absorbing
from dlmkit.samplers.ancestral import Ancestral
from dlmkit.schedules.log_linear import LogLinear
from laws.mutants.base import UNIFORM, VOCAB, Mutant


class PredictsTheMask(X0LeaveOneOut):
    """The mask's logit, -inf, becomes 0."""

    def log_x0(self, logits, x_t, t, process):
        return logits.nan_to_num(neginf=0.0).log_softmax(-1)


class ForgetsToCarryOver(X0LeaveOneOut):
    """Clean tokens are predicted as masked ones are."""

    def log_x0(self, logits, x_t, t, process):
        return logits.log_softmax(-1)


class PosteriorForLeaveOneOut(X0):
    """Plugs in p(x_0 | x_t), which counts x_t twice: the likelihood of the own noisy token is not divided out."""

    def log_x0(self, logits, x_t, t, process):
        return X0LeaveOneOut().log_x0(logits, x_t, t, process)


class BoundOfThePosterior(GenericElbo):
    parameterization = PosteriorForLeaveOneOut()


@dataclass(frozen=True)
class StepsOfThePosterior(Ancestral):
    parameterization = PosteriorForLeaveOneOut()


def process_of(schedule: LogLinear) -> Absorbing:
    return Absorbing(schedule, *VOCAB)


WITH_EPS = (LogLinear(1e-3),)

MUTANTS = [
    Mutant(process_of, WITH_EPS, (PredictsTheMask(),), caught_by=(law_x0_prediction,), title="PredictsTheMask"),
    Mutant(process_of, WITH_EPS, (ForgetsToCarryOver(),), caught_by=(law_x0_prediction,), title="ForgetsToCarryOver"),
    Mutant(BoundOfThePosterior, (), (UNIFORM,), caught_by=(law_exact,)),
    Mutant(StepsOfThePosterior, (1.0, None, 1.0), (UNIFORM,), caught_by=(law_distribution,)),
]
