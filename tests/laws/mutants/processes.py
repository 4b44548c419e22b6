"""Planted errors in forward processes."""

from __future__ import annotations

import torch

from dlmkit.laws.processes import (
    law_chapman_kolmogorov,
    law_corrupt,
    law_corrupt_is_independent,
    law_marginal,
    law_mass,
    law_may_change,
    law_noise_repeats,
    law_posterior,
    law_prior,
    law_rate,
    law_x0_prediction,
)
from dlmkit.laws.samplers import law_reverse_chain
from dlmkit.processes.absorbing import Absorbing
from dlmkit.processes.uniform import Uniform
from dlmkit.schedules.log_linear import LogLinear
from laws.mutants.base import VOCAB, Mutant

# The marginals


class MassTooSmall(Absorbing):
    def coefficients(self, t):
        alpha, mass = super().coefficients(t)
        return alpha, 0.99 * mass


class CountsTheMask(Uniform):
    """Divides by V where only N = V - 1 tokens have mass."""

    def coefficients(self, t):
        alpha, mass = super().coefficients(t)
        return alpha, mass * self.num_tokens / self.vocab_size


class UniformOverTheMask(Uniform):
    """Consistent in itself, but the mask has mass too."""

    def coefficients(self, t):
        alpha = self.schedule.alpha(t)
        return alpha, (1.0 - alpha)[:, None] * torch.full((self.vocab_size,), 1 / self.vocab_size, dtype=alpha.dtype)


class DoublesTheMass(Uniform):
    def marginal(self, x0_probs, t):
        alpha, mass = self.coefficients(t)
        return alpha[:, None] * x0_probs + 2 * mass


# Draws


class CorruptsWithAlpha(Absorbing):
    """Keeps with probability 1 - alpha."""

    def corrupt(self, x_0, t, scored, generator):
        noisy = torch.rand(x_0.shape, dtype=torch.float64, generator=generator) < self.alpha(t)[:, None]
        return x_0.masked_fill(noisy & scored, self.mask_id)


class NoiseIsNeverTheToken(Uniform):
    """Draws noise other than the token itself: the chance of a change is 1 - alpha, not (1 - alpha) (N - 1) / N."""

    num_redraws = 40

    def corrupt(self, x_0, t, scored, generator):
        noise = self.prior(tuple(x_0.shape), generator)
        for _ in range(self.num_redraws):
            noise = torch.where(noise == x_0, self.prior(tuple(x_0.shape), generator), noise)
        noisy = torch.rand(x_0.shape, dtype=torch.float64, generator=generator) >= self.alpha(t)[:, None]
        return torch.where(noisy & scored, noise, x_0)


class NoiseIsRarelyTheToken(NoiseIsNeverTheToken):
    """Draws again once."""

    num_redraws = 1


class CorruptsThePrompt(Absorbing):
    def corrupt(self, x_0, t, scored, generator):
        return super().corrupt(x_0, t, torch.ones_like(scored), generator)


class CorruptsWholeSequences(Absorbing):
    """One draw for all positions of a sequence."""

    def corrupt(self, x_0, t, scored, generator):
        noisy = torch.rand(len(x_0), dtype=torch.float64, generator=generator) >= self.alpha(t)
        return x_0.masked_fill(noisy[:, None] & scored, self.mask_id)


class CorruptsFromTheGlobalGenerator(Absorbing):
    def corrupt(self, x_0, t, scored, generator):
        return x_0.masked_fill((torch.rand(x_0.shape).double() >= self.alpha(t)[:, None]) & scored, self.mask_id)


class UniformDrawsTheMask(Uniform):
    def prior(self, shape, generator):
        return torch.randint(self.vocab_size, shape, generator=generator)


class PriorIsNotTheNoise(Uniform):
    """Starts from the first token, not from noise."""

    def prior(self, shape, generator):
        return torch.zeros(shape, dtype=torch.int64)


# The chain


class TransitionOfTheDifference(Uniform):
    """Takes q_{t|s} for q_{t - s}."""

    def transition(self, s, t):
        return self.coefficients(t - s)


class PosteriorWithoutNormaliser(Uniform):
    def posterior(self, x_t, x0_probs, s, t):
        at_s = self.marginal(x0_probs, s)
        kept, mass = self.transition(s, t)
        likelihood = mass.gather(-1, x_t[:, None]).expand_as(at_s).clone()
        return likelihood.scatter_add_(-1, x_t[:, None], kept[:, None]) * at_s


class PosteriorWithoutStaying(Uniform):
    """The likelihood of x_t without the chance that it was there at s."""

    def posterior(self, x_t, x0_probs, s, t):
        at_s = self.marginal(x0_probs, s)
        joint = self.transition(s, t).mass.gather(-1, x_t[:, None]) * at_s
        return joint / joint.sum(-1, keepdim=True)


class PosteriorOfTheWrongEnd(Absorbing):
    """Steps to s^2 in place of s."""

    def posterior(self, x_t, x0_probs, s, t):
        return super().posterior(x_t, x0_probs, s**2, t)


class RateWithoutAlpha(Uniform):
    def rate(self, t):
        return super().rate(t) * self.alpha(t)[:, None]


class FirstTokenNeverChanges(Uniform):
    """Declares that token 0 is clean, which noise may have drawn."""

    def may_change(self, x_t):
        return x_t != 0


ARGUMENTS = (LogLinear(1e-3), *VOCAB)

MUTANTS = [
    Mutant(MassTooSmall, ARGUMENTS, caught_by=(law_mass,)),
    Mutant(CountsTheMask, ARGUMENTS, caught_by=(law_mass,)),
    Mutant(UniformOverTheMask, ARGUMENTS, caught_by=(law_mass,)),
    Mutant(DoublesTheMass, ARGUMENTS, caught_by=(law_marginal,)),
    Mutant(CorruptsWithAlpha, ARGUMENTS, caught_by=(law_corrupt,)),
    Mutant(NoiseIsNeverTheToken, ARGUMENTS, caught_by=(law_corrupt,)),
    Mutant(NoiseIsRarelyTheToken, ARGUMENTS, caught_by=(law_corrupt,)),
    Mutant(CorruptsThePrompt, ARGUMENTS, caught_by=(law_corrupt,)),
    Mutant(CorruptsWholeSequences, ARGUMENTS, caught_by=(law_corrupt_is_independent,)),
    Mutant(CorruptsFromTheGlobalGenerator, ARGUMENTS, caught_by=(law_noise_repeats,)),
    Mutant(UniformDrawsTheMask, ARGUMENTS, caught_by=(law_prior, law_corrupt)),
    Mutant(PriorIsNotTheNoise, ARGUMENTS, caught_by=(law_prior,)),
    Mutant(TransitionOfTheDifference, ARGUMENTS, caught_by=(law_chapman_kolmogorov,)),
    Mutant(PosteriorWithoutNormaliser, ARGUMENTS, caught_by=(law_posterior,)),
    Mutant(PosteriorWithoutStaying, ARGUMENTS, caught_by=(law_posterior,)),
    Mutant(PosteriorOfTheWrongEnd, ARGUMENTS, caught_by=(law_posterior, law_reverse_chain)),
    Mutant(RateWithoutAlpha, ARGUMENTS, caught_by=(law_rate,)),
    Mutant(FirstTokenNeverChanges, ARGUMENTS, caught_by=(law_may_change, law_x0_prediction)),
]
