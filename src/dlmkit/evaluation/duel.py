"""The exact likelihood of a sampler whose rule looks at the state alone (DUEL).

Time: t = 0 is data, t = 1 is noise; these samplers follow no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlmkit.generation import OnStep, generate
from dlmkit.parameterizations.base import Parameterization
from dlmkit.processes.base import ForwardProcess
from dlmkit.randomness import RowNoise
from dlmkit.samplers.base import Sampler, Step, Stepped
from dlmkit.types import Canvas, Denoiser


@dataclass(frozen=True)
class SamplerLikelihood:
    """The probability with which a sampler generates given texts.

    Attributes:
        log_prob: log p of each token when it was decided, nats, float64 [B, L]; 0 at given ones.
        passes: passes of the network for each text (NFE), int64 [B]; those that only fill a cache are not counted.
        num_steps: steps taken.
    """

    log_prob: Tensor
    passes: Tensor
    num_steps: int

    @property
    def nll(self) -> Tensor:
        """-log p of each text given what was given, nats, float64 [B]."""
        return -self.log_prob.sum(-1)


def duel(
    denoiser: Denoiser,
    process: ForwardProcess,
    sampler: Sampler[Any],
    tokens: Tensor,
    num_steps: int,
    given: Tensor | None = None,
    noise: RowNoise | int = 0,
    on_step: OnStep | None = None,
) -> SamplerLikelihood:
    """Return the exact log-likelihood of texts under a sampler.

    From all masks (or with the given tokens revealed), repeat: the sampler chooses positions S, log p(x_i) is added for
    each i in S, the true tokens are revealed there. As S does not depend on drawn tokens, exp of the sum is the
    probability that the sampler generates the text, and sums to 1 over all texts. Where S depends on the row's seed
    (score=random, ties, `first_hitting`) it is that of the sampler with these seeds, whose mean of log p over seeds is
    a lower bound. A sampler that fills block after block reads the clean blocks before its own, as in generation; an
    approximate cache gives the likelihood of the sampler with that cache. Source: arXiv 2603.01367 (DUEL).

    Args:
        denoiser: the network (a backbone in eval mode).
        process: the noise that it was trained on.
        sampler: with `has_likelihood`.
        tokens: the texts, without masks, int64 [B, L].
        num_steps: as for `generate`.
        given: bool [B, L], tokens that are not scored; ``None`` for none.
        noise: of the sampler, or a seed for it.
        on_step: called after every step.

    Raises:
        ValueError: a sampler without a likelihood, or masks among the tokens to score.
    """
    check_likelihood(sampler)
    fixed = torch.zeros_like(tokens, dtype=torch.bool) if given is None else given
    if process.mask_id is not None and ((tokens == process.mask_id) & ~fixed).any():
        raise ValueError("there are masks among the tokens to score: give whole texts")
    log_prob = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
    forced = _Forced(sampler, log_prob)
    done = generate(denoiser, process, forced, Canvas(tokens, fixed), num_steps, noise, on_step)
    return SamplerLikelihood(log_prob, done.passes, done.num_steps)


def check_likelihood(sampler: Sampler[Any]) -> None:
    """Raise ValueError for a sampler whose samples have no known probability."""
    if sampler.has_likelihood:
        return
    if sampler.reads_samples:
        why = "which positions it decides depends on drawn tokens: take a score of the state, such as prob or margin"
    else:
        why = (
            "its tokens are not drawn once each from the network's own distribution: take confidence, threshold, factor"
            " or entropy_bound with temperature=1, top_p=1 and token=draw"
        )
    raise ValueError(f"{sampler.label} has no likelihood: {why}")


@dataclass(frozen=True)
class _Forcing:
    """The sampler's own state, the texts, int64 [R, L], and their places in the batch, int64 [R]."""

    within: Any
    truth: Tensor
    rows: Tensor


class _Forced(Sampler[_Forcing]):
    """The sampler with true tokens in place of those that it draws, whose log p it writes to `log_prob` [B, L]."""

    def __init__(self, sampler: Sampler[Any], log_prob: Tensor) -> None:
        self.sampler, self.log_prob = sampler, log_prob

    @property
    def parameterization(self) -> Parameterization:  # type: ignore[override]
        return self.sampler.parameterization

    def init(self, canvas: Canvas) -> _Forcing:
        rows = torch.arange(len(canvas.tokens), device=canvas.tokens.device)
        return _Forcing(self.sampler.init(canvas), canvas.tokens, rows)

    def select(self, state: _Forcing, rows: Tensor) -> _Forcing:
        return _Forcing(self.sampler.select(state.within, rows), state.truth[rows], state.rows[rows])

    def num_steps(self, canvas: Canvas, requested: int) -> int:
        return self.sampler.num_steps(canvas, requested)

    def times(self, num_steps: int) -> Tensor:
        return self.sampler.times(num_steps)

    def undecided(self, process: ForwardProcess, x_t: Tensor, fixed: Tensor, state: _Forcing) -> Tensor:
        return self.sampler.undecided(process, x_t, fixed, state.within)

    def step(
        self, denoiser: Denoiser, process: ForwardProcess, x_t: Tensor, step: Step, state: _Forcing
    ) -> Stepped[_Forcing]:
        done = self.sampler.step(denoiser, process, x_t, step, state.within)
        decided = decided_in(self.sampler, process, x_t, step.fixed, state.within, done)
        if done.reading is not None and decided.any():
            logits = done.reading.logits[decided[done.reading.where]]
            truth = state.truth[decided]
            row, column = decided.nonzero(as_tuple=True)
            log_prob = logits.double().log_softmax(-1).gather(-1, truth[:, None])[:, 0]
            self.log_prob[state.rows[row], column] = log_prob
        tokens = torch.where(decided, state.truth, x_t)
        return Stepped(tokens, _Forcing(done.state, state.truth, state.rows), done.reading)


def decided_in(
    sampler: Sampler[Any], process: ForwardProcess, x_t: Tensor, fixed: Tensor, state: Any, done: Stepped[Any]
) -> Tensor:
    """Return bool [B, L]: the positions that a step decided.

    Args:
        sampler: with `has_likelihood`.
        process: the noise.
        x_t: before the step, int64 [B, L].
        fixed: bool [B, L], as for the step.
        state: before the step.
        done: what it led to.
    """
    before = sampler.undecided(process, x_t, fixed, state)
    return before & ~sampler.undecided(process, done.tokens, fixed, done.state)
