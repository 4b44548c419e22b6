"""Planted errors in corruptions."""

from __future__ import annotations

import torch

from dlmkit.corruption.complementary import Complementary
from dlmkit.corruption.fixed_count import FixedCount
from dlmkit.corruption.independent import Independent
from dlmkit.laws import corruption as laws
from dlmkit.laws.corruption import (
    law_copies_follow_the_marginal,
    law_copies_integrate,
    law_draws_are_keyed,
    law_noise_rate,
)
from dlmkit.processes.absorbing import Absorbing
from dlmkit.schedules.cosine_mdlm import CosineMDLM
from dlmkit.types import TimeDraw
from laws.mutants.base import ABSORBING, VOCAB, Mutant, RightPart

# Which noise belongs to which sequence


class KeyedByRow(Independent):
    """By the place in the micro-batch, not by the index of the sequence."""

    def draw(self, process, batch, draw, indices, *key):
        return super().draw(process, batch, draw, range(len(batch)), *key)


class ForgetsTheKey(Independent):
    """The same noise in every step."""

    def draw(self, process, batch, draw, indices, *key):
        return super().draw(process, batch, draw, indices)


# Complementary pairs


class SecondCopyWithTheFirstsWeight(Complementary):
    """No change of variables."""

    def times(self, process, draw):
        return TimeDraw(super().times(process, draw).t, torch.stack([draw.weight, draw.weight]))


class PairsWhatHasNoPartner(Complementary):
    """Takes the nearest end for the t' that alpha(1) > 0 does not leave, as if it were drawn like the others."""

    def is_paired(self, process, t):
        return torch.ones_like(t, dtype=torch.bool)


class ComplementOfThePrompt(Complementary):
    """The second copy masks whatever the first one leaves clean."""

    def corrupt(self, process, x_0, t, scored, generator):
        first = super().corrupt(process, x_0, t, scored, generator)[0]
        return torch.stack([first, x_0.masked_fill(first == x_0, process.mask_id)])


class SecondCopyAtTheFirstsTime(Complementary):
    """Masks of the complement as noise of the first time."""

    def times(self, process, draw):
        return TimeDraw(torch.stack([draw.t, draw.t]), torch.stack([draw.weight, draw.weight]))


# A fixed number of masks


class FloorsTheCount(FixedCount):
    """Masks l = floor(n a) tokens, one fewer than the noise rate says."""

    def corrupt(self, process, x_0, t, scored, generator):
        last = 1.0 - process.alpha(torch.ones((), dtype=torch.float64))
        count = torch.floor(scored.sum(-1) * (1.0 - process.alpha(t[0])) / last)
        draw = torch.rand(x_0.shape, dtype=torch.float64, generator=generator)
        rank = draw.masked_fill(~scored, 2.0).argsort(-1).argsort(-1)
        return x_0.masked_fill(scored & (rank < count[:, None]), process.mask_id)[None]


class DividesByTheProbability(FixedCount):
    """The noise rate of independent masks."""

    def noise_rate(self, process, t, scored):
        return 1.0 - process.alpha(t)


SMALLEST_SHARE = (2e-3,)
SHORT_ABSORBING = Absorbing(CosineMDLM(0.01), *VOCAB)
"""alpha(1) = 0.01: some times have no complement."""

MUTANTS = [
    Mutant(KeyedByRow, paired_with=(ABSORBING,), caught_by=(law_draws_are_keyed,)),
    Mutant(ForgetsTheKey, paired_with=(ABSORBING,), caught_by=(law_draws_are_keyed,)),
    Mutant(SecondCopyWithTheFirstsWeight, SMALLEST_SHARE, (SHORT_ABSORBING,), caught_by=(law_copies_integrate,)),
    Mutant(PairsWhatHasNoPartner, SMALLEST_SHARE, (SHORT_ABSORBING,), caught_by=(law_copies_integrate,)),
    Mutant(ComplementOfThePrompt, SMALLEST_SHARE, (SHORT_ABSORBING,), caught_by=(law_draws_are_keyed,)),
    Mutant(SecondCopyAtTheFirstsTime, SMALLEST_SHARE, (SHORT_ABSORBING,), caught_by=(law_copies_follow_the_marginal,)),
    Mutant(FloorsTheCount, paired_with=(ABSORBING,), caught_by=(law_noise_rate,)),
    Mutant(DividesByTheProbability, paired_with=(ABSORBING,), caught_by=(law_noise_rate,)),
]

RIGHT_PARTS = [
    RightPart(Complementary, SMALLEST_SHARE, (SHORT_ABSORBING,), passes=tuple(laws.LAWS)),
    RightPart(FixedCount, (), (SHORT_ABSORBING,), passes=tuple(laws.LAWS)),
]
