"""Planted errors in the order in which positions are decided, masked again, and filled."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dlmkit.laws.orders import (
    law_counts,
    law_draws_follow_the_order,
    law_entropy_bound,
    law_exact_order,
    law_likelihood,
    law_sharpening_leaves_the_order,
    law_ties,
)
from dlmkit.laws.remasking import law_remasking_chain, law_remasking_rates
from dlmkit.laws.samplers import law_distribution, law_given_tokens_stay, law_rows_apart
from dlmkit.laws.sharpening import law_sharpening
from dlmkit.randomness import RowNoise
from dlmkit.samplers.ancestral import Ancestral
from dlmkit.samplers.confidence import Confidence
from dlmkit.samplers.entropy_bound import EntropyBound
from dlmkit.samplers.p2 import P2
from dlmkit.samplers.ranking import Ranking, entropies
from dlmkit.samplers.remasking import Rates
from dlmkit.samplers.remdm import ReMDM
from dlmkit.samplers.threshold import Threshold
from dlmkit.types import NetworkInput
from laws.mutants.base import ABSORBING, Mutant

# Which positions


class RunningMaximumOverTheBatch(EntropyBound):
    """torch.cummax(entropy, dim=0): over the rows."""

    def commits(self, ranked, step, state):
        ordered = ranked.by_rank(entropies(ranked).double())
        return ranked.first(((ordered.cumsum(-1) - ordered.cummax(0).values) <= self.gamma).sum(-1).clamp_min(1))


class LastInPlaceOfTheLargest(EntropyBound):
    """Positions are sorted by another score than entropy, so that the last one's is not the largest."""

    def commits(self, ranked, step, state):
        ordered = ranked.by_rank(entropies(ranked).double())
        return ranked.first(((ordered.cumsum(-1) - ordered) <= self.gamma).sum(-1).clamp_min(1))


class TiesToTheLeft(Confidence):
    """A sort alone."""

    def rank(self, reading, step):
        ranked = super().rank(reading, step)
        order = ranked.score.argsort(dim=-1, descending=True, stable=True)
        return Ranking(ranked.where, ranked.score, order.argsort(-1), ranked.log_probs)


class RoundsTheRestDown(Confidence):
    """floor(m (1 - s / t)) of the m that are left, so that most of the work is in the last steps."""

    @staticmethod
    def _due(where, step, state):
        m, left = where.sum(-1), step.num_steps - step.index
        return torch.div(m, left, rounding_mode="floor")


class StopsEarly(P2):
    """The last masks are replaced one step too soon, and nothing is masked again after that."""

    def undecided(self, process, x_t, fixed, state):
        return process.may_change(x_t) & ~fixed

    def step(self, denoiser, process, x_t, step, state):
        return super().step(denoiser, process, x_t, replace(step, num_steps=max(1, step.num_steps - 1)), state)


class ThresholdOfSharpened(Threshold):
    """The probability of a token at the temperature that it is drawn with."""

    def rank(self, reading, step):
        return super().rank(replace(reading, logits=self.sharpened(reading.logits)), step)


class ReadsSamplesSilently(Confidence):
    """The score of a drawn token, as if it were one of the state."""

    reads_samples = False  # type: ignore[assignment]


# Predictions and draws


class ReadsTheFirstText(Confidence):
    """What was predicted before anything was decided, in every step."""

    def step(self, denoiser, process, x_t, step, state):
        def stale(inputs: NetworkInput):
            return denoiser(replace(inputs, x_t=torch.full_like(inputs.x_t, process.mask_id)))

        return super().step(stale, process, x_t, step, state)


class OneNumberForAllPositions(Confidence):
    def step(self, denoiser, process, x_t, step, state):
        shared = SharedNumbers(step.noise.seeds, step.noise.step, step.noise.start)
        return super().step(denoiser, process, x_t, replace(step, noise=shared), state)


class SharedNumbers(RowNoise):
    def uniform(self, name: str, length: int) -> Tensor:
        numbers = super().uniform(name, length)
        return numbers[:, :1].expand(-1, length) if name == "tokens" else numbers


class LikeliestInTheLastStep(Confidence):
    """argmax of the masks that are left."""

    def step(self, denoiser, process, x_t, step, state):
        last = step.index == step.num_steps - 1
        return Confidence(token="argmax" if last else "draw").step(denoiser, process, x_t, step, state)


@dataclass(frozen=True)
class NucleusOffByOne(Ancestral):
    """Drops the token that crosses p."""

    def sharpened(self, logits):
        ordered, ids = (logits / self.temperature if self.temperature else logits).sort(dim=-1, descending=True)
        outside = ordered.softmax(-1).cumsum(-1) > self.top_p
        outside[:, 0] = False
        if self.top_p == 1.0:
            return super().sharpened(logits)
        return torch.full_like(logits, float("-inf")).scatter_(-1, ids, ordered.masked_fill(outside, float("-inf")))


# Masking again


class NaNAtGivenTokens(ReMDM):
    """A softmax over confidences that are minus infinity where nothing is decided."""

    def sigma(self, process, step, masked, state):
        alpha_s, alpha_t = self.alpha(process, step.s)[:, None], self.alpha(process, step.t)[:, None]
        most = ((1.0 - alpha_s) / alpha_t.clamp_min(1e-300)).clamp_max(1.0)
        return (self.eta * most * (-state.prob).softmax(-1)).masked_fill(masked, 0.0)


class ConfidenceSilently(ReMDM):
    reads_samples = False  # type: ignore[assignment]


class MoreThanThereIsRoomFor(ReMDM):
    """sigma is not capped."""

    def sigma(self, process, step, masked, state):
        return torch.full(masked.shape, self.eta, dtype=torch.float64)


class LikeliestBesideMaskingAgain(ReMDM):
    def step(self, denoiser, process, x_t, step, state):
        return ReMDM(temperature=0.0, eta=self.eta).step(denoiser, process, x_t, step, state)


class ClaimsALikelihood(ReMDM):
    has_likelihood = True  # type: ignore[assignment]


class UnmasksTooFew(ReMDM):
    """As many as without masking again."""

    def rates(self, process, step, masked, state):
        rates = super().rates(process, step, masked, state)
        alpha_s, alpha_t = self.alpha(process, step.s)[:, None], self.alpha(process, step.t)[:, None]
        return Rates(rates.remask, ((alpha_s - alpha_t) / (1.0 - alpha_t)).expand_as(rates.unmask))


class MasksGivenTokens(ReMDM):
    def step(self, denoiser, process, x_t, step, state):
        return super().step(denoiser, process, x_t, replace(step, fixed=torch.zeros_like(step.fixed)), state)


def mutant(make, *laws, arguments=(), title="", paired_with=(ABSORBING,)) -> Mutant:
    return Mutant(make, arguments, paired_with, caught_by=laws, title=title or make.__name__)


DRAWN = (1.0, None, 1.0, 0.0, 1.0, "drawn")
MARGIN = (1.0, None, 1.0, 0.0, 1.0, "margin")

MUTANTS = [
    mutant(RunningMaximumOverTheBatch, law_entropy_bound, law_rows_apart, arguments=(*MARGIN, "draw", 0.7)),
    mutant(LastInPlaceOfTheLargest, law_entropy_bound, arguments=MARGIN),
    mutant(TiesToTheLeft, law_ties),
    mutant(RoundsTheRestDown, law_counts),
    mutant(StopsEarly, law_counts),
    mutant(ThresholdOfSharpened, law_sharpening_leaves_the_order),
    mutant(ReadsSamplesSilently, law_draws_follow_the_order, law_distribution, arguments=DRAWN),
    mutant(ReadsTheFirstText, law_exact_order, law_distribution),
    mutant(OneNumberForAllPositions, law_draws_follow_the_order),
    mutant(LikeliestInTheLastStep, law_draws_follow_the_order),
    mutant(NucleusOffByOne, law_sharpening),
    mutant(NaNAtGivenTokens, law_remasking_rates, arguments=(1.0, None, 1.0, 0.0, 1.0, "conf", 0.5)),
    mutant(ConfidenceSilently, law_remasking_rates, arguments=(1.0, None, 1.0, 0.0, 1.0, "conf", 0.5)),
    mutant(
        MoreThanThereIsRoomFor,
        law_remasking_rates,
        law_remasking_chain,
        arguments=(1.0, None, 1.0, 0.0, 1.0, "cap", 0.5),
    ),
    mutant(LikeliestBesideMaskingAgain, law_remasking_chain),
    mutant(ClaimsALikelihood, law_likelihood),
    mutant(UnmasksTooFew, law_remasking_rates, arguments=(1.0, None, 1.0, 0.0, 1.0, "cap", 0.5)),
    mutant(MasksGivenTokens, law_given_tokens_stay, arguments=(1.0, None, 1.0, 0.0, 1.0, "cap", 0.5)),
]
