"""Parts with one planted error each, and the laws that catch them: what is not caught here is not checked.

Every mutant is a real part with a slip that somebody has made. `CAUGHT` names the laws that refuse it; the others of
its kind may pass or fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dlmkit.backbones.prediction import Prediction
from dlmkit.processes.absorbing_complementary import AbsorbingComplementary
from torch import Tensor

from dlmkit.backbones import base
from dlmkit.backbones.attention import attention_mask
from dlmkit.backbones.dit import DiT
from dlmkit.laws import backbones, objectives, processes, samplers, schedules, t_samplers
from dlmkit.laws.findings import Law
from dlmkit.objectives.autoregressive import Autoregressive
from dlmkit.objectives.block import Block
from dlmkit.objectives.elbo import Elbo
from dlmkit.objectives.masked import Masked
from dlmkit.objectives.uniform import UniformBound
from dlmkit.processes.absorbing import Absorbing
from dlmkit.processes.none import NoNoise
from dlmkit.processes.uniform import Uniform
from dlmkit.samplers import ancestral as ancestral_module
from dlmkit.samplers.ancestral import Ancestral
from dlmkit.samplers.base import Step
from dlmkit.samplers.blockwise import Blockwise
from dlmkit.schedules.base import Schedule
from dlmkit.schedules.cosine_mdlm import CosineMDLM
from dlmkit.schedules.linear import Linear
from dlmkit.schedules.log_linear import LogLinear
from dlmkit.t_samplers.base import stretch
from dlmkit.t_samplers.clipped import Clipped
from dlmkit.t_samplers.iid import IID
from dlmkit.t_samplers.importance import Importance
from dlmkit.t_samplers.learned import Learned
from dlmkit.t_samplers.stratified import Stratified
from dlmkit.types import Context, TokenLoss
from laws.parts import MASK_ID, VOCAB_SIZE


def caught(laws: Sequence[Law], *part: Any) -> set[str]:
    """The names of the laws that refuse the part."""
    return {law.__name__ for law in laws if not all(finding.passed for finding in law(*part))}


def meanings(law: Law, *part: Any) -> str:
    return "\n".join(finding.meaning for finding in law(*part) if not finding.passed)


# Schedules


class DerivativeWithoutEps(LogLinear):
    def derivative(self, t):
        return -torch.ones_like(t)


class Increasing(Linear):
    def alpha(self, t):
        return t

    def derivative(self, t):
        return torch.ones_like(t)


class Wiggles(Linear):
    """Ends right, and grows in between."""

    derivative = Schedule.derivative

    def alpha(self, t):
        return 1.0 - t + 0.1 * t * (1 - t) * torch.sin(40 * torch.pi * t)


class EndsEarly(Linear):
    """alpha(1) = 0.1: a tenth of the data is left."""

    def alpha(self, t):
        return 1.0 - 0.9 * t

    def derivative(self, t):
        return torch.full_like(t, -0.9)


class NotCleanAtZero(CosineMDLM):
    """The eps at the wrong end."""

    def alpha(self, t):
        return super().alpha(t) - self.eps


class WrongInverse(Linear):
    def inverse(self, alpha):
        return alpha


SCHEDULES = [
    (DerivativeWithoutEps(0.1), {"law_derivative", "law_derivative_is_the_slope"}),
    (Increasing(), {"law_ends", "law_falls"}),
    (Wiggles(), {"law_falls"}),
    (EndsEarly(), {"law_ends"}),
    (NotCleanAtZero(1e-3), {"law_ends"}),
    (WrongInverse(), {"law_inverse"}),
]


def named(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else type(value).__name__ if not isinstance(value, set) else ""


@pytest.mark.parametrize(("mutant", "by"), SCHEDULES, ids=named)
def test_schedules(mutant, by):
    assert by <= caught(schedules.LAWS, mutant)


# Processes


class MassTooSmall(Absorbing):
    def coefficients(self, t):
        alpha, mass = super().coefficients(t)
        return alpha, 0.99 * mass


class CorruptsWithAlpha(Absorbing):
    """Keeps with probability 1 - alpha."""

    def corrupt(self, x_0, t, scored, generator):
        noisy = torch.rand(x_0.shape, dtype=torch.float64, generator=generator) < self.alpha(t)[:, None]
        return x_0.masked_fill(noisy & scored, self.mask_id)


class CorruptsTooSeldom(Uniform):
    """Draws noise other than the token itself: the chance of a change is 1 - alpha, not (1 - alpha)(N - 1) / N."""

    def corrupt(self, x_0, t, scored, generator):
        noise = self.prior(tuple(x_0.shape), generator)
        for _ in range(40):
            noise = torch.where(noise == x_0, self.prior(tuple(x_0.shape), generator), noise)
        noisy = torch.rand(x_0.shape, dtype=torch.float64, generator=generator) >= self.alpha(t)[:, None]
        return torch.where(noisy & scored, noise, x_0)


class CorruptsThePrompt(Absorbing):
    def corrupt(self, x_0, t, scored, generator):
        return super().corrupt(x_0, t, torch.ones_like(scored), generator)


class CorruptsRowsWhole(Absorbing):
    def corrupt(self, x_0, t, scored, generator):
        noisy = torch.rand(len(x_0), dtype=torch.float64, generator=generator) >= self.alpha(t)
        return x_0.masked_fill(noisy[:, None] & scored, self.mask_id)


class CorruptsFromTheGlobalGenerator(Absorbing):
    def corrupt(self, x_0, t, scored, generator):
        return x_0.masked_fill((torch.rand(x_0.shape).double() >= self.alpha(t)[:, None]) & scored, self.mask_id)


class PosteriorWithoutNormaliser(Uniform):
    def posterior(self, x_t, x0_probs, s, t):
        at_s = self.marginal(x0_probs, s)
        kept, mass = self.transition(s, t)
        likelihood = mass.gather(-1, x_t[:, None]).expand_as(at_s).clone()
        return likelihood.scatter_add_(-1, x_t[:, None], kept[:, None]) * at_s


class PosteriorOfTheWrongEnd(Absorbing):
    """Steps to s^2 where s is asked for."""

    def posterior(self, x_t, x0_probs, s, t):
        return super().posterior(x_t, x0_probs, s**2, t)


class UniformDrawsTheMask(Uniform):
    def prior(self, shape, generator):
        return torch.randint(self.vocab_size, shape, generator=generator)


class UniformOverTheMask(Uniform):
    """Consistent in itself, but noise is spread over the mask as well."""

    def coefficients(self, t):
        alpha = self.schedule.alpha(t)
        return alpha, (1.0 - alpha)[:, None] * torch.full((self.vocab_size,), 1 / self.vocab_size, dtype=alpha.dtype)


class PriorIsNotTheNoise(Uniform):
    """Starts from the first token, not from noise."""

    def prior(self, shape, generator):
        return torch.zeros(shape, dtype=torch.int64)


class PredictsTheMask(Absorbing):
    """The mask's logit left in."""

    def log_x0(self, logits, x_t):
        return logits.nan_to_num(neginf=0.0).log_softmax(-1)


class ForgetsToCarryOver(Absorbing):
    """Clean tokens are predicted anew."""

    def log_x0(self, logits, x_t):
        return logits.log_softmax(-1)


class RateWithoutAlpha(Uniform):
    def rate(self, t):
        return super().rate(t) * self.alpha(t)[:, None]


PROCESSES = [
    (MassTooSmall, {"law_mass"}),
    (CorruptsWithAlpha, {"law_corrupt"}),
    (CorruptsTooSeldom, {"law_corrupt"}),
    (CorruptsThePrompt, {"law_corrupt"}),
    (CorruptsRowsWhole, {"law_corrupt_is_independent"}),
    (CorruptsFromTheGlobalGenerator, {"law_noise_repeats"}),
    (PosteriorWithoutNormaliser, {"law_posterior"}),
    (PosteriorOfTheWrongEnd, {"law_posterior", "law_reverse_chain"}),
    (UniformDrawsTheMask, {"law_prior", "law_corrupt"}),
    (UniformOverTheMask, {"law_mass"}),
    (PriorIsNotTheNoise, {"law_prior"}),
    (PredictsTheMask, {"law_log_x0"}),
    (ForgetsToCarryOver, {"law_log_x0"}),
    (RateWithoutAlpha, {"law_rate"}),
]


@pytest.mark.parametrize(("mutant", "by"), PROCESSES, ids=named)
def test_processes(mutant, by):
    process = mutant(LogLinear(1e-3), VOCAB_SIZE, MASK_ID)
    laws = [*processes.LAWS, *([samplers.law_reverse_chain] if "law_reverse_chain" in by else [])]
    assert by <= caught(laws, process)


class SecondCopyWithTheFirstsWeight(AbsorbingComplementary):
    """No change of variables."""

    def copies(self, t, weight):
        return super().copies(t, weight)[0], torch.stack([weight, weight])


class PairsWhatHasNoPartner(AbsorbingComplementary):
    """Takes the nearest end for the t' that alpha(1) > 0 does not leave, as if it were drawn like the others."""

    def _paired(self, t):
        return torch.ones_like(t, dtype=torch.bool)


class ComplementOfThePrompt(AbsorbingComplementary):
    """The second copy masks whatever the first one shows."""

    def corrupt_copies(self, x_0, t, scored, generator):
        first = self.corrupt(x_0, t[0], scored, generator)
        return torch.stack([first, x_0.masked_fill(first == x_0, self.mask_id)])


class SecondCopyAtTheFirstsTime(AbsorbingComplementary):
    """Masks of the complement, called noise of the first time."""

    def copies(self, t, weight):
        return torch.stack([t, t]), torch.stack([weight, weight])


COPIES = [
    (AbsorbingComplementary, set()),
    (SecondCopyWithTheFirstsWeight, {"law_copies"}),
    (PairsWhatHasNoPartner, {"law_copies"}),
    (ComplementOfThePrompt, {"law_copies"}),
    (SecondCopyAtTheFirstsTime, {"law_copies"}),
]


@pytest.mark.parametrize(("mutant", "by"), COPIES, ids=named)
def test_copies(mutant, by):
    assert caught(processes.LAWS, mutant(CosineMDLM(0.01), VOCAB_SIZE, MASK_ID, 2e-3)) == by


# Objectives


class WeightUpsideDown(Masked):
    """t instead of 1 / t."""

    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        return TokenLoss(result.loss, result.nll * noised.t[:, None] ** 2)


class NoWeight(Masked):
    """Plain cross-entropy at the masked tokens, called a bound."""

    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        return TokenLoss(result.loss, result.nll * noised.t[:, None])


class PaysForCleanTokens(Masked):
    """Cross-entropy at every scored token."""

    def __call__(self, prediction, noised, process):
        log_prob = prediction.token_log_prob(noised.x_0, noised.scored)
        loss = torch.zeros(noised.x_0.shape, dtype=log_prob.dtype).masked_scatter(noised.scored, -log_prob)
        loss = loss * (noised.weight / noised.t)[:, None]
        return TokenLoss(loss, loss.detach())


class LossAtCleanTokens(PaysForCleanTokens):
    """The same slip in the loss alone."""

    def __call__(self, prediction, noised, process):
        loss = super().__call__(prediction, noised, process).loss
        return TokenLoss(loss, Masked.__call__(self, prediction, noised, process).nll)


class ClipsTheNLL(Masked):
    """The training weight, clipped, in the nll."""

    def __call__(self, prediction, noised, process):
        result = Masked("clipped", 3.0)(prediction, noised, process)
        return TokenLoss(result.loss, result.loss.detach())


class NLLWithGradient(Masked):
    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        return TokenLoss(result.loss, result.loss)


class AveragesOverMasked(Masked):
    """The normaliser is the number of masked tokens in the micro-batch."""

    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        num_masked = (noised.x_t != noised.x_0).sum().clamp_min(1)
        return TokenLoss(result.loss / num_masked, result.nll)


class AveragesTheNLL(Masked):
    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        num_masked = (noised.x_t != noised.x_0).sum(-1, keepdim=True).clamp_min(1)
        return TokenLoss(result.loss, result.nll * noised.x_0.shape[1] / num_masked)


class PaysForThePrompt(Masked):
    """Every masked-looking position counts, scored or not."""

    def __call__(self, prediction, noised, process):
        everything = replace(noised, scored=torch.ones_like(noised.scored))
        return PaysForCleanTokens.__call__(self, prediction, everything, process)


class ForgetsTheTimeSampler(Masked):
    def __call__(self, prediction, noised, process):
        return super().__call__(prediction, replace(noised, weight=torch.ones_like(noised.weight)), process)


class AnnouncesAnotherWeight(Masked):
    """Tells the head one weight and multiplies by another, so that the gradient made at once is not the loss's."""

    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        return TokenLoss(result.loss * noised.t.sqrt()[:, None], result.nll)


class LogOfTheTarget(Masked):
    """Pulls towards a smoothed target."""

    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        where = (noised.x_t != noised.x_0) & noised.scored
        other = (noised.x_0 + 1 + (noised.x_0 == 0)) % process.vocab_size
        other = torch.where(other == process.mask_id, 0, other)
        extra = -prediction.token_log_prob(other, where)
        smooth = torch.zeros(where.shape, dtype=extra.dtype).masked_scatter(where, extra)
        return TokenLoss(result.loss + 0.1 * smooth, result.nll)


class OnlyChangedTokens(UniformBound):
    """Uniform noise charged at changed tokens only, as if it were absorbing."""

    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        return TokenLoss(result.loss, result.nll * (noised.x_t != noised.x_0))


class ReadsThePosterior(Elbo):
    """Takes the network's output for p(x_0 | x_t), which counts x_t twice, where leave-one-out is wanted."""

    def __call__(self, prediction, noised, process):
        class Plain:
            def logits(self, where: Tensor) -> Tensor:
                alpha, mass = process.coefficients(noised.t)
                own = alpha[:, None, None] * F.one_hot(noised.x_t, process.vocab_size) + mass[:, :1, None]
                return prediction.logits(where) + own[where].log()

        return super().__call__(Plain(), noised, process)


OBJECTIVES = [
    (WeightUpsideDown(), {"law_exact", "law_closed_form"}),
    (NoWeight(), {"law_exact", "law_closed_form"}),
    (PaysForCleanTokens(), {"law_exact", "law_closed_form", "law_truth_is_stationary"}),
    (LossAtCleanTokens(), {"law_truth_is_stationary"}),
    (ClipsTheNLL(), {"law_exact", "law_closed_form"}),
    (NLLWithGradient(), {"law_scored"}),
    (AveragesOverMasked(), {"law_rows_apart"}),
    (AveragesTheNLL(), {"law_exact", "law_closed_form"}),
    (PaysForThePrompt(), {"law_scored"}),
    (ForgetsTheTimeSampler(), {"law_weight"}),
    (LogOfTheTarget(), {"law_truth_is_stationary"}),
    (OnlyChangedTokens(), {"law_exact", "law_closed_form"}),
    (ReadsThePosterior(), {"law_exact"}),
]


@pytest.mark.parametrize(("mutant", "by"), OBJECTIVES, ids=named)
def test_objectives(mutant, by):
    process = (Absorbing if isinstance(mutant, Masked) else Uniform)(Linear(), VOCAB_SIZE, MASK_ID)
    assert by <= caught(objectives.LAWS, mutant, process)


class OneTimeForAllBlocks(Block):
    """The first block's."""

    def __call__(self, prediction, noised, process):
        times = noised.t.reshape(len(noised.t), -1)
        return super().__call__(prediction, replace(noised, t=times[:, :1].expand_as(times)), process)


@pytest.mark.parametrize(("objective", "by"), [(Block, set()), (OneTimeForAllBlocks, {"law_blocks"})], ids=named)
def test_blocks_of_an_objective(objective, by):
    process = Absorbing(Linear(), VOCAB_SIZE, MASK_ID)
    assert caught(objectives.LAWS, objective(2, Masked()), process) == by


def test_an_announced_weight_that_is_not_the_losss_is_not_believed():
    """The head finds out, and recomputes: this is no mutant."""
    process = Absorbing(Linear(), VOCAB_SIZE, MASK_ID)
    assert caught([objectives.law_float32], AnnouncesAnotherWeight(), process) == set()


def test_the_autoregressive_baseline():
    class HalfTheText(Autoregressive):
        def __call__(self, prediction, noised, process):
            result = super().__call__(prediction, noised, process)
            return TokenLoss(result.loss, result.nll.masked_fill(torch.arange(noised.x_0.shape[1]) == 0, 0.0))

    assert "law_next_token" in caught(objectives.EXACT_LAWS, HalfTheText(), NoNoise(VOCAB_SIZE, MASK_ID))


def test_the_meaning_says_what_is_wrong():
    process = Absorbing(Linear(), VOCAB_SIZE, MASK_ID)
    assert "nll is p_mask = " in meanings(objectives.law_closed_form, NoWeight(), process)
    assert "100% of them clean" in meanings(objectives.law_closed_form, PaysForCleanTokens(), process)
    slope = meanings(schedules.law_derivative, DerivativeWithoutEps(0.1))
    assert "d alpha/dt is -1 " in slope
    assert "-0.9" in slope


# Time samplers


class ForgetsWhatEpsLeavesOut(Stratified):
    def sample(self, num, generator):
        t, weight = super().sample(num, generator)
        return t, torch.ones_like(weight)


class DensityNotItsInverse(Importance):
    def sample(self, num, generator):
        t, weight = super().sample(num, generator)
        return t, 1 / weight


class MissesTheStart(IID):
    """Nothing below 0.1."""

    def sample(self, num, generator):
        return stretch(torch.rand(num, dtype=torch.float64, generator=generator), 0.1)


class MissesTheEnd(IID):
    def sample(self, num, generator):
        t, weight = super().sample(num, generator)
        return 0.95 * t, weight


class SquaresTheTimes(IID):
    def sample(self, num, generator):
        t, weight = super().sample(num, generator)
        return t**2, weight


class ReachesZero(IID):
    """t = 0, where the bound's weight 1 / t is infinite."""

    def sample(self, num, generator):
        t, weight = super().sample(num, generator)
        return torch.where(t < 1e-2, 0.0, t), weight


class DrawsInFloat32(IID):
    def sample(self, num, generator):
        t, weight = super().sample(num, generator)
        return t.float(), weight.float()


class ClipsInSilence(Clipped):
    """A range left out, and nothing said about it."""

    covers = (0.0, 1.0)


class ClipsMoreThanItSays(Clipped):
    def sample(self, num, generator):
        return Clipped(self.schedule, self.low + 0.02, self.high).sample(num, generator)


class ClipsAsIfItWereAll(Clipped):
    """The weight of draws from all of [0, 1]: the mean over the range in place of the integral."""

    def sample(self, num, generator):
        t, weight = super().sample(num, generator)
        return t, weight / (self.high - self.low)


class CoversNothing(IID):
    covers = (0.5, 0.5)


class ForgetsItsDensity(Learned):
    """Draws as it has learned to, weighs as if it had not."""

    def sample(self, num, generator):
        t, _ = super().sample(num, generator)
        return t, torch.full_like(t, 1.0 - self.eps)


class SkipsTheQuietBins(Learned):
    """No floor: what has little loss is never drawn again."""

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


LEARNER = (1e-3, 16, 0.1, 0.9, 4, False)
T_SAMPLERS = [
    (ForgetsWhatEpsLeavesOut(0.3), {"law_mean_is_the_integral"}),
    (DensityNotItsInverse(CosineMDLM(1e-3), 1e-3), {"law_mean_is_the_integral", "law_covers_the_range"}),
    (MissesTheStart(1e-3), {"law_covers_the_range"}),
    (MissesTheEnd(1e-3), {"law_covers_the_range"}),
    (SquaresTheTimes(1e-3), {"law_mean_is_the_integral", "law_covers_the_range"}),
    (ReachesZero(1e-3), {"law_draws"}),
    (DrawsInFloat32(1e-3), {"law_draws"}),
    (ClipsInSilence(Linear(), 0.3, 0.8), {"law_mean_is_the_integral", "law_covers_the_range"}),
    (ClipsInSilence(Linear(), 0.02, 1.0), {"law_covers_the_range"}),
    (ClipsMoreThanItSays(Linear(), 0.3, 0.8), {"law_covers_the_range"}),
    (ClipsAsIfItWereAll(Linear(), 0.3, 0.8), {"law_mean_is_the_integral", "law_covers_the_range"}),
    (CoversNothing(1e-3), {"law_covers_the_range"}),
    (ForgetsItsDensity(*LEARNER), {"law_learning_moves_no_mean"}),
    (SkipsTheQuietBins(*LEARNER), {"law_learning_moves_no_mean"}),
    (DrawsWhatIsQuiet(*LEARNER), {"law_learning_moves_no_mean"}),
]


@pytest.mark.parametrize("right", [Clipped(Linear(), 0.3, 0.8), Learned(*LEARNER)], ids=named)
def test_a_right_t_sampler_passes(right):
    assert caught(t_samplers.LAWS, right) == set()


@pytest.mark.parametrize(("mutant", "by"), T_SAMPLERS, ids=named)
def test_t_samplers(mutant, by):
    assert by <= caught(t_samplers.LAWS, mutant)


# Samplers


class AncestralMutant(Ancestral):
    def __init__(self):
        super().__init__(1.0, None, 1.0)


class PosteriorForLeaveOneOut(AncestralMutant):
    """The plug-in reverse step with p(x_0 | x_t), which counts x_t twice."""

    def step(self, denoiser, process, x_t, fixed, step, state, generator):
        alpha, mass = process.coefficients(step.t)

        class Plain:
            def __init__(self, prediction: Any) -> None:
                self.prediction = prediction

            def logits(self, where: Tensor) -> Tensor:
                own = alpha[:, None, None] * F.one_hot(x_t, process.vocab_size) + mass[:, :1, None]
                return self.prediction.logits(where) + own[where].log()

        return super().step(lambda x, t: Plain(denoiser(x, t)), process, x_t, fixed, step, state, generator)


class ChangesWhatIsGiven(AncestralMutant):
    def step(self, denoiser, process, x_t, fixed, step, state, generator):
        return super().step(denoiser, process, x_t, torch.zeros_like(fixed), step, state, generator)


class ChangesGivenAtTheEnd(AncestralMutant):
    """Draws every position anew in the last step."""

    def step(self, denoiser, process, x_t, fixed, step, state, generator):
        tokens, state = super().step(denoiser, process, x_t, fixed, step, state, generator)
        if step.index == step.num_steps - 1:
            where = torch.ones_like(fixed)
            tokens = denoiser(x_t, step.t).logits(where).argmax(-1).reshape(x_t.shape)
        return tokens, state


class LeavesMasks(AncestralMutant):
    """Stops before t = 0."""

    def step(self, denoiser, process, x_t, fixed, step, state, generator):
        step = Step(step.index, step.num_steps, step.t, step.s.clamp_min(0.05))
        return super().step(denoiser, process, x_t, fixed, step, state, generator)


class IgnoresS(AncestralMutant):
    """Unmasks everything in the first step."""

    def step(self, denoiser, process, x_t, fixed, step, state, generator):
        step = Step(step.index, step.num_steps, step.t, torch.zeros_like(step.s))
        return super().step(denoiser, process, x_t, fixed, step, state, generator)


class TakesTheLikeliest(AncestralMutant):
    def __init__(self):
        Ancestral.__init__(self, 0.0, None, 1.0)


class SharpensSilently(AncestralMutant):
    def __init__(self):
        Ancestral.__init__(self, 0.8, None, 1.0)


class WalksTheWrongWay(AncestralMutant):
    def times(self, num_steps):
        return super().times(num_steps).flip(0)


class DrawsGlobally(AncestralMutant):
    """From torch's own generator."""

    def step(self, denoiser, process, x_t, fixed, step, state, generator):
        return super().step(denoiser, process, x_t, fixed, step, state, torch.default_generator)


class WritesToTheCanvas(AncestralMutant):
    def init(self, canvas):
        canvas.tokens.zero_()


SAMPLERS = [
    (PosteriorForLeaveOneOut, Uniform, {"law_distribution"}),
    (ChangesWhatIsGiven, Uniform, {"law_given_tokens_stay"}),
    (ChangesGivenAtTheEnd, Absorbing, {"law_given_tokens_stay"}),
    (LeavesMasks, Absorbing, {"law_given_tokens_stay"}),
    (IgnoresS, Absorbing, {"law_distribution", "law_infilling"}),
    (TakesTheLikeliest, Absorbing, {"law_distribution", "law_draws_repeat"}),
    (SharpensSilently, Absorbing, {"law_distribution"}),
    (DrawsGlobally, Absorbing, {"law_draws_repeat"}),
    (WritesToTheCanvas, Absorbing, {"law_given_tokens_stay"}),
]


@pytest.mark.parametrize(("mutant", "process", "by"), SAMPLERS, ids=named)
def test_samplers(mutant, process, by):
    laws = [law for law in samplers.LAWS if law.__name__ in by]
    assert by == caught(laws, mutant(), process(Linear(), VOCAB_SIZE, MASK_ID))


def test_times_that_run_the_wrong_way():
    assert caught([samplers.law_times], WalksTheWrongWay()) == {"law_times"}


class BlocksOfAnotherText(Blockwise):
    """Each block is drawn given the clean blocks of the row before."""

    def step(self, denoiser, process, x_t, fixed, step, state, generator):
        def misread(x, t, segments, context):
            start = (x.shape[1] - 1) // self.block_size * self.block_size
            x = torch.cat([x[:, :start].roll(1, 0), x[:, start:]], dim=1)
            return denoiser(x, t, segments, Context(x, self.block_size, last=True))

        return super().step(misread, process, x_t, fixed, step, state, generator)


@pytest.mark.parametrize("block_size", [1, 2])
def test_blocks_of_a_sampler(block_size):
    process = Absorbing(Linear(), VOCAB_SIZE, MASK_ID)
    right, wrong = (kind(block_size, AncestralMutant()) for kind in (Blockwise, BlocksOfAnotherText))
    assert caught(samplers.LAWS, right, process) == set()
    assert "law_distribution" in caught(samplers.LAWS, wrong, process)


def gumbel32(probs: Tensor, generator: torch.Generator) -> Tensor:
    """The usual Gumbel maximum, whose noise ends at 16.6: a token less likely than 6e-8 never wins."""
    noise = torch.rand(probs.shape, generator=generator)
    return (probs.float().log() - (-(noise + 1e-10).log() + 1e-10).log()).argmax(-1)


def multinomial32(probs: Tensor, generator: torch.Generator) -> Tensor:
    """torch's own draw, which races in the dtype that it is given."""
    return torch.multinomial(probs.float(), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("draw", [gumbel32, multinomial32])
def test_float32_draws_lose_the_tail(draw, monkeypatch):
    monkeypatch.setattr(ancestral_module, "categorical", draw)
    assert caught([samplers.law_tail], AncestralMutant(), Absorbing(Linear(), samplers.WIDE, MASK_ID)) == {"law_tail"}


# Backbones


def network(kind: type[DiT] = DiT, causal: bool = False, shift: bool = True) -> DiT:
    """A tiny network whose every weight matters."""
    torch.manual_seed(0)
    made = kind(13, 5, 16, 16, 2, 2, 8, causal=causal, shift=shift, bos_id=2 if shift else None)
    return backbones.with_random_weights(made)


class ShiftsTwice(DiT):
    """The output at i - 2 speaks about token i."""

    def align(self, hidden, length):
        return torch.cat([hidden[:, :1], hidden[:, : length - 1]], dim=1)


class ForgetsTheShift(DiT):
    """Position i reads token i and predicts it: a copy."""

    def read(self, x_t, segments):
        return x_t, segments


class PacksWithoutMask(DiT):
    def forward(self, x_t, t, segments=None):
        return super().forward(x_t, t, None)


class LeavesTheMaskIn(DiT):
    def forward(self, x_t, t, segments=None):
        prediction = super().forward(x_t, t, segments)
        return Prediction(prediction.hidden, self.head, None)


@pytest.mark.parametrize("causal", [False, True])
def test_a_right_backbone_passes(causal):
    assert caught(backbones.LAWS, network(causal=causal)) == set()


@pytest.mark.parametrize(
    ("mutant", "causal", "by"),
    [
        (ShiftsTwice, True, {"law_sees_what_it_may"}),
        (ForgetsTheShift, True, {"law_sees_what_it_may"}),
        (PacksWithoutMask, False, {"law_documents_apart"}),
        (PacksWithoutMask, True, {"law_documents_apart"}),
        (LeavesTheMaskIn, False, {"law_mask_is_never_predicted"}),
    ],
    ids=named,
)
def test_backbones(mutant, causal, by):
    assert by <= caught(backbones.LAWS, network(mutant, causal))


def test_annealing_that_hides_the_past(monkeypatch):
    def only_what_was_drawn(length, device, *, causal, segments=None, visible=None):
        if visible is None:
            return attention_mask(length, device, causal=causal, segments=segments)
        return (visible | torch.eye(length, dtype=torch.bool))[None, None]

    monkeypatch.setattr(base, "attention_mask", only_what_was_drawn)
    assert caught([backbones.law_annealing_shows_the_past], network()) == {"law_annealing_shows_the_past"}


def test_there_are_enough_mutants():
    assert len(SCHEDULES) + len(PROCESSES) + len(OBJECTIVES) + len(T_SAMPLERS) + len(SAMPLERS) >= 40
