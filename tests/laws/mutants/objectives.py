"""Planted errors in objectives."""

from __future__ import annotations

from dataclasses import replace

import torch

from dlmkit.laws.discrete_time import law_steps
from dlmkit.laws.objectives import (
    law_closed_form,
    law_exact,
    law_float32,
    law_larger,
    law_next_token,
    law_nothing_to_score,
    law_rows_apart,
    law_scored,
    law_truth_is_stationary,
    law_weight,
)
from dlmkit.objectives.autoregressive import Autoregressive
from dlmkit.objectives.discrete import DiscreteTimeElbo
from dlmkit.objectives.elbo import GenericElbo, integrand
from dlmkit.objectives.hybrid import HybridElbo
from dlmkit.objectives.masked import MaskedElbo
from dlmkit.objectives.score_entropy import ScoreEntropy
from dlmkit.objectives.uniform import UniformElbo
from dlmkit.processes.absorbing import Absorbing
from dlmkit.processes.hybrid import Hybrid
from dlmkit.processes.none import NoNoise
from dlmkit.processes.uniform import Uniform
from dlmkit.schedules.log_linear import LogLinear
from dlmkit.tensors import at_positions, row_of, scatter
from dlmkit.types import TokenLoss
from laws.mutants.base import ABSORBING, UNIFORM, VOCAB, Mutant, RightPart

# The weight of a time


class WeightUpsideDown(MaskedElbo):
    """t in place of 1 / t."""

    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        return TokenLoss(result.loss, result.nll * noised.t[:, None] ** 2)


class NoWeight(MaskedElbo):
    """Plain cross-entropy at the masked tokens as a bound."""

    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        return TokenLoss(result.loss, result.nll * noised.t[:, None])


class WeightWithoutEps(MaskedElbo):
    """The weight of log_linear without its factor 1 - eps."""

    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        return TokenLoss(result.loss, result.nll / (1 - 1e-3))


class ClipsTheNLL(MaskedElbo):
    """The clipped weight of the training loss in the nll."""

    def __call__(self, prediction, noised, process):
        result = MaskedElbo("clipped", 3.0)(prediction, noised, process)
        return TokenLoss(result.loss, result.loss.detach())


class ForgetsTheTimeSampler(MaskedElbo):
    def __call__(self, prediction, noised, process):
        return super().__call__(prediction, replace(noised, weight=torch.ones_like(noised.weight)), process)


class AnnouncesAnotherWeight(MaskedElbo):
    """Announces one weight to the head and multiplies by another; the head notices, and computes the right gradient."""

    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        return TokenLoss(result.loss * noised.t.sqrt()[:, None], result.nll)


# Which tokens have a loss


class CrossEntropyEverywhere(MaskedElbo):
    """At every scored token, clean or not."""

    def __call__(self, prediction, noised, process):
        log_prob = prediction.token_log_prob(noised.x_0, noised.scored)
        loss = scatter(-log_prob, noised.scored) * (noised.weight / noised.t)[:, None]
        return TokenLoss(loss, loss.detach())


class LossAtCleanTokens(CrossEntropyEverywhere):
    """The same error in the loss alone."""

    def __call__(self, prediction, noised, process):
        loss = super().__call__(prediction, noised, process).loss
        return TokenLoss(loss, MaskedElbo.__call__(self, prediction, noised, process).nll)


class LossAtThePrompt(MaskedElbo):
    """Cross-entropy at every position, scored or not."""

    def __call__(self, prediction, noised, process):
        everything = replace(noised, scored=torch.ones_like(noised.scored))
        return CrossEntropyEverywhere.__call__(self, prediction, everything, process)


class OnlyChangedTokens(UniformElbo):
    """Uniform noise has a loss at changed tokens only, as if it were absorbing."""

    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        return TokenLoss(result.loss, result.nll * (noised.x_t != noised.x_0))


class OnlyMaskedTokens(HybridElbo):
    """Hybrid noise has a loss at the masks only."""

    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        return TokenLoss(result.loss, result.nll * (noised.x_t == process.mask_id))


class AllButTheFirstToken(Autoregressive):
    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        return TokenLoss(result.loss, result.nll.masked_fill(torch.arange(noised.x_0.shape[1]) == 0, 0.0))


# Means


class AveragesOverMasked(MaskedElbo):
    """Divides by the number of masked tokens in the micro-batch."""

    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        num_masked = (noised.x_t != noised.x_0).sum().clamp_min(1)
        return TokenLoss(result.loss / num_masked, result.nll)


class AveragesOverNothing(MaskedElbo):
    """The same, even where there are none."""

    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        return TokenLoss(result.loss / (noised.x_t != noised.x_0).sum(), result.nll)


class AveragesTheNLL(MaskedElbo):
    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        num_masked = (noised.x_t != noised.x_0).sum(-1, keepdim=True).clamp_min(1)
        return TokenLoss(result.loss, result.nll * noised.x_0.shape[1] / num_masked)


class AveragesOverSteps(DiscreteTimeElbo):
    """The mean of the terms in place of their sum."""

    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        return TokenLoss(result.loss, result.nll / self.num_steps)


# The formula


class NLLWithGradient(MaskedElbo):
    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        return TokenLoss(result.loss, result.loss)


class LabelSmoothing(MaskedElbo):
    """The loss pulls towards another token than the target too."""

    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        where = (noised.x_t != noised.x_0) & noised.scored
        other = (noised.x_0 + 1 + (noised.x_0 == 0)) % process.vocab_size
        other = torch.where(other == process.mask_id, 0, other)
        smooth = scatter(-prediction.token_log_prob(other, where), where)
        return TokenLoss(result.loss + 0.1 * smooth, result.nll)


class ForgetsToNormalise(MaskedElbo):
    """Takes logits for log-probabilities, which the exact predictor's happen to be."""

    def __call__(self, prediction, noised, process):
        where = (noised.x_t != noised.x_0) & noised.scored
        log_prob = prediction.logits(where).gather(-1, noised.x_0[where][:, None])[:, 0]
        loss = scatter(-log_prob, where) * (noised.weight / noised.t)[:, None]
        return TokenLoss(loss, loss.detach())


class WithoutTheConstant(ScoreEntropy):
    """Without r (log r - 1): the same gradient, and no bound."""

    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        alpha = process.alpha(noised.t)
        r, slope = alpha / (1 - alpha), -process.schedule.derivative(noised.t) / alpha
        constant = (slope * r * (r.log() - 1))[:, None] * (noised.x_t == process.mask_id)
        return TokenLoss(result.loss, result.nll - constant)


class GenericInFloat32(GenericElbo):
    """In the precision of the logits: near t = 1 terms of order 1 cancel and are divided by alpha."""

    def __call__(self, prediction, noised, process):
        where, row = noised.scored, row_of(noised.scored)
        x_0, z = noised.x_0[where], noised.x_t[where]
        logits = prediction.logits(where)
        alpha, mass = (values.to(logits.dtype)[row] for values in process.coefficients(noised.t))
        x_theta = self.parameterization.log_x0(logits, z, noised.t[row], process).exp()
        q = mass.scatter_add(-1, x_0[:, None], alpha[:, None])
        rate = process.rate(noised.t).to(logits.dtype)[row].gather(-1, z[:, None])[:, 0]
        nll = integrand(q, alpha[:, None] * x_theta + mass, z, rate) * at_positions(noised.weight, where)
        return TokenLoss(scatter(nll, where), scatter(nll.detach(), where))


class TrainsAnotherLoss(MaskedElbo):
    """The loss is halved, but not its sum with the gradient that is computed with it."""

    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        return TokenLoss(result.loss / 2, result.nll, result.fused)


LOG_LINEAR = LogLinear(1e-3)
ABSORBING_WITH_EPS = Absorbing(LOG_LINEAR, *VOCAB)

MUTANTS = [
    Mutant(WeightUpsideDown, (), (ABSORBING,), caught_by=(law_exact, law_closed_form)),
    Mutant(NoWeight, (), (ABSORBING,), caught_by=(law_exact, law_closed_form)),
    Mutant(WeightWithoutEps, (), (ABSORBING_WITH_EPS,), caught_by=(law_exact,)),
    Mutant(ClipsTheNLL, (), (ABSORBING,), caught_by=(law_exact, law_closed_form)),
    Mutant(ForgetsTheTimeSampler, (), (ABSORBING,), caught_by=(law_weight,)),
    Mutant(CrossEntropyEverywhere, (), (ABSORBING,), caught_by=(law_exact, law_closed_form, law_truth_is_stationary)),
    Mutant(LossAtCleanTokens, (), (ABSORBING,), caught_by=(law_truth_is_stationary,)),
    Mutant(TrainsAnotherLoss, (), (ABSORBING,), caught_by=(law_scored,)),
    Mutant(LossAtThePrompt, (), (ABSORBING,), caught_by=(law_scored,)),
    Mutant(OnlyChangedTokens, (), (UNIFORM,), caught_by=(law_exact, law_closed_form)),
    Mutant(OnlyChangedTokens, (), (Uniform(LOG_LINEAR, *VOCAB),), caught_by=(law_exact,), title="OnlyChangedWithEps"),
    Mutant(OnlyMaskedTokens, (), (Hybrid(*VOCAB, 0.1, 1.0),), caught_by=(law_exact,)),
    Mutant(AllButTheFirstToken, (), (NoNoise(*VOCAB),), caught_by=(law_next_token,)),
    Mutant(AveragesOverMasked, (), (ABSORBING,), caught_by=(law_rows_apart,)),
    Mutant(AveragesOverNothing, (), (ABSORBING,), caught_by=(law_nothing_to_score,)),
    Mutant(AveragesTheNLL, (), (ABSORBING,), caught_by=(law_exact, law_closed_form)),
    Mutant(AveragesOverSteps, (3,), (ABSORBING,), caught_by=(law_steps,)),
    Mutant(NLLWithGradient, (), (ABSORBING,), caught_by=(law_scored,)),
    Mutant(LabelSmoothing, (), (ABSORBING,), caught_by=(law_truth_is_stationary,)),
    Mutant(ForgetsToNormalise, (), (ABSORBING,), caught_by=(law_larger, law_closed_form)),
    Mutant(WithoutTheConstant, (), (ABSORBING_WITH_EPS,), caught_by=(law_exact,)),
    Mutant(GenericInFloat32, (), (UNIFORM,), caught_by=(law_float32,)),
]

RIGHT_PARTS = [RightPart(AnnouncesAnotherWeight, (), (ABSORBING,), passes=(law_float32,))]
