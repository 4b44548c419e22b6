"""Planted errors in the boundary terms of the bound, under a schedule that stops short of pure noise."""

from __future__ import annotations

from dlmkit.laws.boundary_terms import law_boundary_terms
from dlmkit.objectives.masked import MaskedElbo
from dlmkit.objectives.score_entropy import ScoreEntropy
from dlmkit.parameterizations.score import Score
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.absorbing import Absorbing
from dlmkit.processes.base import EndShares
from dlmkit.schedules.log_linear import LogLinear
from laws.mutants.base import VOCAB, Mutant


class ScoresWithoutTheOwn(Score):
    """Normalised without the score of x_t itself, which is 1."""

    def log_marginal(self, logits, x_t, t, process):
        return super().log_marginal(logits, x_t, t, process).scatter(-1, x_t[:, None], float("-inf")).log_softmax(-1)


class ForgetsTheOwnScore(ScoreEntropy):
    parameterization = ScoresWithoutTheOwn()


class MarginalOfCleanTokens(X0LeaveOneOut):
    """Takes the prediction of x_0 for that of x_1."""

    def log_marginal(self, logits, x_t, t, process):
        return self.log_x0(logits, x_t, t, process)


class PriorTermOfCleanTokens(MaskedElbo):
    parameterization = MarginalOfCleanTokens()


class ForgetsTheEnds(Absorbing):
    """Takes its integral for the whole bound."""

    end_shares = EndShares(0.0, 0.0)


ENDS_EARLY = LogLinear(0.2)
"""alpha(1) = 0.2."""

NOISE = (Absorbing(ENDS_EARLY, *VOCAB),)

MUTANTS = [
    Mutant(ForgetsTheOwnScore, (), NOISE, caught_by=(law_boundary_terms,)),
    Mutant(PriorTermOfCleanTokens, (), NOISE, caught_by=(law_boundary_terms,)),
    Mutant(
        MaskedElbo, (), (ForgetsTheEnds(ENDS_EARLY, *VOCAB),), caught_by=(law_boundary_terms,), title="ForgetsTheEnds"
    ),
]
