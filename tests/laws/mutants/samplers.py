"""Planted errors in samplers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dlmkit.laws.samplers import (
    law_distribution,
    law_draws_repeat,
    law_given_tokens_stay,
    law_infilling,
    law_rows_apart,
    law_tail,
    law_times,
)
from dlmkit.randomness import RowNoise
from dlmkit.samplers.ancestral import Ancestral
from dlmkit.samplers.base import Stepped
from dlmkit.tensors import at_positions
from dlmkit.types import NetworkInput
from laws.mutants.base import ABSORBING, UNIFORM, WIDE_ABSORBING, Mutant


@dataclass(frozen=True)
class Wrong(Ancestral):
    """Ancestral sampling without sharpening, of which the mutants are made."""

    keeps_distribution = True  # whatever the temperature


# Given tokens


class ChangesWhatIsGiven(Wrong):
    def step(self, denoiser, process, x_t, step, state):
        step = replace(step, fixed=torch.zeros_like(step.fixed))
        return super().step(denoiser, process, x_t, step, state)


class ChangesGivenAtTheEnd(Wrong):
    """Draws every position again in the last step."""

    def step(self, denoiser, process, x_t, step, state):
        done = super().step(denoiser, process, x_t, step, state)
        if step.index < step.num_steps - 1:
            return done
        where = torch.ones_like(step.fixed)
        return replace(done, tokens=denoiser(NetworkInput(x_t, step.t)).logits(where).argmax(-1).reshape(x_t.shape))


class WritesToTheCanvas(Wrong):
    def init(self, canvas):
        canvas.tokens.zero_()


# Times


class LeavesMasks(Wrong):
    """Stops before t = 0."""

    def step(self, denoiser, process, x_t, step, state):
        step = replace(step, s=step.s.clamp_min(0.05))
        return super().step(denoiser, process, x_t, step, state)


class IgnoresS(Wrong):
    """Unmasks everything in the first step."""

    def step(self, denoiser, process, x_t, step, state):
        step = replace(step, s=torch.zeros_like(step.s))
        return super().step(denoiser, process, x_t, step, state)


class AlwaysTheFirstStep(Wrong):
    """From t = 1 to 0.9, in every step."""

    def step(self, denoiser, process, x_t, step, state):
        step = replace(step, t=torch.ones_like(step.t), s=torch.full_like(step.s, 0.9))
        return super().step(denoiser, process, x_t, step, state)


class TimesRunBackwards(Wrong):
    def times(self, num_steps):
        return super().times(num_steps).flip(0)


# Draws


class DrawsGlobally(Wrong):
    """From torch's own generator."""

    def step(self, denoiser, process, x_t, step, state):
        step = replace(step, noise=RowNoise(torch.randint(2**62, (len(x_t),))))
        return super().step(denoiser, process, x_t, step, state)


class ReadsItsNeighbours(Wrong):
    """Each row's noise depends on the whole batch."""

    def step(self, denoiser, process, x_t, step, state):
        seeds = step.noise.seeds
        step = replace(step, noise=replace(step.noise, seeds=seeds + seeds.sum()))
        return super().step(denoiser, process, x_t, step, state)


class GumbelInFloat32(Wrong):
    """The usual Gumbel maximum, whose noise ends at 16.6: a token less likely than 6e-8 never wins."""

    def draw(self, probs: Tensor) -> Tensor:
        noise = torch.rand(probs.shape)
        return (probs.float().log() - (-(noise + 1e-10).log() + 1e-10).log()).argmax(-1)

    def step(self, denoiser, process, x_t, step, state):
        active = process.may_change(x_t) & ~step.fixed
        now, s, t = x_t[active], at_positions(step.s, active), at_positions(step.t, active)
        logits = denoiser(NetworkInput(x_t, step.t)).logits(active)
        x_theta = self.parameterization.log_x0(logits, now, t, process).double().exp()
        drawn = self.draw(process.posterior(now, x_theta, s, t))
        return Stepped(x_t.masked_scatter(active, drawn), state, None)


class MultinomialInFloat32(GumbelInFloat32):
    """torch's own draw, which races in the dtype of its input."""

    def draw(self, probs: Tensor) -> Tensor:
        return torch.multinomial(probs.float(), 1)[:, 0]


MUTANTS = [
    Mutant(ChangesWhatIsGiven, (), (UNIFORM,), caught_by=(law_given_tokens_stay,)),
    Mutant(ChangesGivenAtTheEnd, (), (ABSORBING,), caught_by=(law_given_tokens_stay,)),
    Mutant(WritesToTheCanvas, (), (ABSORBING,), caught_by=(law_given_tokens_stay,)),
    Mutant(LeavesMasks, (), (ABSORBING,), caught_by=(law_given_tokens_stay,)),
    Mutant(IgnoresS, (), (ABSORBING,), caught_by=(law_distribution, law_infilling)),
    Mutant(AlwaysTheFirstStep, (), (UNIFORM,), caught_by=(law_distribution,)),
    Mutant(TimesRunBackwards, caught_by=(law_times,)),
    Mutant(Wrong, (0.0,), (ABSORBING,), caught_by=(law_distribution, law_draws_repeat), title="TakesTheLikeliest"),
    Mutant(Wrong, (0.8,), (ABSORBING,), caught_by=(law_distribution,), title="SharpensSilently"),
    Mutant(DrawsGlobally, (), (ABSORBING,), caught_by=(law_draws_repeat,)),
    Mutant(ReadsItsNeighbours, (), (ABSORBING,), caught_by=(law_rows_apart,)),
    Mutant(GumbelInFloat32, (), (WIDE_ABSORBING,), caught_by=(law_tail,)),
    Mutant(MultinomialInFloat32, (), (WIDE_ABSORBING,), caught_by=(law_tail,)),
]
