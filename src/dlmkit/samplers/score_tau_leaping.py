"""Tau-leaping with Euler steps on the reverse rates that scores give."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dlmkit.parameterizations.score import SMALLEST_ALPHA, Score, interpolating
from dlmkit.processes.base import ForwardProcess
from dlmkit.samplers.base import Sampler, Step, Stepped, read
from dlmkit.samplers.score_analytic import Jumps, Scores, leap, leaving_no_mask, scores_at, tweedie
from dlmkit.tensors import at_positions
from dlmkit.types import Denoiser


@dataclass(frozen=True)
class ScoreTauLeaping(Sampler[None]):
    """Each position jumps to y with probability rate_t (t - s) s_t(y), at most 1 in all; the last step denoises.

    rate_t is the forward jump rate into x_t: -alpha' / alpha into the mask, that over N into a token under uniform
    noise. Source: arXiv 2310.16834 (SEDD), section 4 (its Euler sampler, tau-leaping of arXiv 2205.14987). The last
    step is `score_analytic`'s, to t = 0, and leaves no mask; `score_analytic` needs fewer steps.

    First which positions change, then to which token, both in float64.
    """

    parameterization = Score()

    def step(self, denoiser: Denoiser, process: ForwardProcess, x_t: Tensor, step: Step, state: None) -> Stepped[None]:
        """Return the tokens at time s."""
        reading = read(denoiser, x_t, process.may_change(x_t) & ~step.fixed, step)
        if not len(reading.logits):
            return Stepped(x_t, None, reading)
        scores = scores_at(self.parameterization, process, x_t, reading, step)
        if step.index < step.num_steps - 1:
            jumps = euler(scores, process, step, reading.where)
        else:
            jumps = leaving_no_mask(tweedie(scores, process), process)
        return Stepped(leap(x_t, reading.where, jumps, step.noise), None, reading)


def euler(scores: Scores, process: ForwardProcess, step: Step, active: Tensor) -> Jumps:
    """Return an Euler step on the reverse rates at the True entries of `active` [B, L]."""
    noise = interpolating(process)
    alpha = noise.schedule.alpha(step.t).clamp_min(SMALLEST_ALPHA)  # the one that the scores were scaled by
    rate = -noise.schedule.derivative(step.t) / alpha / noise.num_noise_tokens
    s = scores.log_score.exp()
    return Jumps((at_positions(rate * (step.t - step.s), active) * s.sum(-1)).clamp_max(1.0), s)
