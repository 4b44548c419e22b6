"""Samplers that decide the positions of which the network is surest first."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dlmkit.parameterizations.base import Parameterization
from dlmkit.parameterizations.score import interpolating
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.base import ForwardProcess
from dlmkit.samplers.ancestral import fill
from dlmkit.samplers.base import Reading, S, Step, Stepped, read
from dlmkit.samplers.drawing import Shaped, ShapedSampler
from dlmkit.samplers.ranking import Ranking, Score, ranking, state_score
from dlmkit.types import Canvas, Denoiser


@dataclass(frozen=True)
class Ordered(ShapedSampler[S]):
    """A score ranks the undecided positions, `commits` decides how many of the first are kept, and each gets a token.

    Scores are computed in float32 from the network's own distribution p_i, before temperature and the like, and ties
    (scores that agree to four digits) are broken by the row's seed. Which positions are decided then depends on the
    state and the seed alone (unless score=drawn), and one decision a step leaves the data's distribution exactly as it
    is, whatever the score; two decisions in one step are drawn independently of each other.

    Attributes:
        score: prob, margin, entropy or random, see `dlmkit.samplers.ranking.state_score`. "drawn" is the probability of
            a token that is drawn first (LLaDA's low_confidence, MaskGIT): it keeps unlikely draws for later and so
            never follows the data's distribution.
        token: "draw" draws each token from its distribution, "argmax" takes the likeliest.
    """

    score: Score = "prob"
    token: Literal["draw", "argmax"] = "draw"

    parameterization: ClassVar[Parameterization] = X0LeaveOneOut()
    needs_masks = True

    @property
    def reads_samples(self) -> bool:  # type: ignore[override]
        """Whether the score is that of a drawn token."""
        return self.score == "drawn"

    @property
    def keeps_distribution(self) -> bool:  # type: ignore[override]
        """Whether tokens are drawn from the network's own distribution."""
        return super().keeps_distribution and self.token == "draw"

    @property
    def has_likelihood(self) -> bool:
        """Whether tokens are drawn from the network's own distribution, by a score that does not read them."""
        return self.neutral and self.token == "draw" and not self.reads_samples

    @abstractmethod
    def commits(self, ranked: Ranking, step: Step, state: S) -> Tensor:
        """Return bool [B, L]: the positions that are decided in this step, at least one in each row that has any."""

    def waits(self, where: Tensor, step: Step, state: S) -> Tensor:
        """Return bool [B]: rows in which nothing is decided in this step, which then cost no pass of the network."""
        return torch.zeros(len(where), dtype=torch.bool, device=where.device)

    def num_steps(self, canvas: Canvas, requested: int) -> int:
        """Return the most free positions of a row, at least 1: each step decides one, whatever was requested."""
        return max(1, int(canvas.num_free.max()))

    def step(self, denoiser: Denoiser, process: ForwardProcess, x_t: Tensor, step: Step, state: S) -> Stepped[S]:
        """Decide some positions."""
        where = process.may_change(x_t) & ~step.fixed
        where = where & ~self.waits(where, step, state)[:, None]
        reading = read(denoiser, x_t, where, step, time_of(x_t, process))
        if not where.any():
            return Stepped(x_t, state, reading)
        if self.score == "drawn":
            return self._drawn_first(process, x_t, step, state, reading)
        chosen = self.choose(reading, step, state)
        decided = Reading(chosen, reading.logits[chosen[where]])
        return Stepped(fill(self._shape, process, x_t, step, decided), state, reading)

    def choose(self, reading: Reading, step: Step, state: S) -> Tensor:
        """Return bool [B, L]: the positions that are decided in this step, by a score of the state alone.

        Args:
            reading: of the undecided positions, in rows that do not wait.
            step: of which the noise (it breaks ties), the index and the number of steps are read.
            state: of the sampler.
        """
        return self.commits(self.rank(reading, step), step, state)

    def rank(self, reading: Reading, step: Step) -> Ranking:
        """Return the ranking of the positions that were read, by a score of the state alone."""
        log_probs = reading.logits.float().log_softmax(-1)
        score = state_score(self.score, log_probs, reading.where, step.noise)
        return ranking(reading.where, score, log_probs, step.noise)

    def _drawn_first(self, process: ForwardProcess, x_t: Tensor, step: Step, state: S, reading: Reading) -> Stepped[S]:
        drawn = fill(self._shape, process, x_t, step, reading)
        log_probs = reading.logits.float().log_softmax(-1)
        score = log_probs.gather(-1, drawn[reading.where][:, None])[:, 0].exp()
        chosen = self.commits(ranking(reading.where, score, log_probs, step.noise), step, state)
        return Stepped(torch.where(chosen, drawn, x_t), state, reading)

    @property
    def _shape(self) -> Shaped:
        """How tokens are drawn: at temperature 0 where the likeliest is taken."""
        return replace(self, temperature=0.0) if self.token == "argmax" else self


def time_of(x_t: Tensor, process: ForwardProcess) -> Tensor:
    """Return the time at which as large a share of a text is masked as in each row of x_t, float64 [B].

    It is what a network that is conditioned on the time should read: these samplers follow no clock.
    """
    masked = process.may_change(x_t).double().mean(-1)
    return interpolating(process).schedule.inverse(1.0 - masked)
