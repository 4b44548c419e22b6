"""Tweedie's tau-leaping (SEDD's analytic sampler): the exact reverse step of each position, from scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dlmkit.parameterizations.score import SMALLEST_ALPHA, Score, interpolating
from dlmkit.processes.base import ForwardProcess
from dlmkit.randomness import RowNoise
from dlmkit.samplers.base import Reading, Sampler, Step, Stepped, read
from dlmkit.tensors import at_positions, categorical
from dlmkit.types import Denoiser

LEAST_KEPT = 1e-6
"""Steps with a smaller alpha_t / alpha_s are not inverted: it is divided by, which amplifies rounding."""


class Scores(NamedTuple):
    """The network's scores at N positions, float64.

    Attributes:
        log_score: [N, V], -inf at x_t itself and at the mask.
        alpha_s: [N].
        alpha_t: [N], at most alpha_s.
    """

    log_score: Tensor
    alpha_s: Tensor
    alpha_t: Tensor


class Jumps(NamedTuple):
    """How N positions change in one step.

    Attributes:
        probability: of a change, [N].
        weights: unnormalised probabilities of the other tokens, [N, V].
    """

    probability: Tensor
    weights: Tensor


@dataclass(frozen=True)
class ScoreAnalytic(Sampler[None]):
    """p(x_s = y | x_t = z) = q_{t|s}(z | y) p_s(y) / p_t(z) in each position, p_s from the scores by undoing the noise.

    With kappa = alpha_t / alpha_s and m the step's mass, p_t = kappa p_s + m gives p_s(y) / p_t(z) = (s(y) - m(y) sum
    of s) / kappa, the sum over all tokens with s(z) = 1. Source: arXiv 2310.16834 (SEDD), section 4: its analytic
    sampler, optimal among those that change positions independently.

    - absorbing: a mask goes to y with probability s_t(y) (alpha_s - alpha_t) / alpha_t. The last step unmasks whatever
      is left, as an inexact score may not sum to what it should.
    - uniform: where alpha_t is 0 (the first step of a schedule that ends in pure noise) scores are uninformative, as
      all are 1, and nothing changes.

    First which positions change, then to which token, both in float64.
    """

    parameterization = Score()

    def step(self, denoiser: Denoiser, process: ForwardProcess, x_t: Tensor, step: Step, state: None) -> Stepped[None]:
        """Return the tokens at time s."""
        reading = read(denoiser, x_t, process.may_change(x_t) & ~step.fixed, step)
        if not len(reading.logits):
            return Stepped(x_t, None, reading)
        jumps = tweedie(scores_at(self.parameterization, process, x_t, reading, step), process)
        if step.index == step.num_steps - 1:
            jumps = leaving_no_mask(jumps, process)
        return Stepped(leap(x_t, reading.where, jumps, step.noise), None, reading)


def scores_at(parameterization: Score, process: ForwardProcess, x_t: Tensor, reading: Reading, step: Step) -> Scores:
    """Return the scores at the N positions that were read."""
    active = reading.where
    alpha_s, alpha_t = at_positions(process.alpha(step.s), active), at_positions(process.alpha(step.t), active)
    logits = reading.logits.double()
    return Scores(parameterization.log_score(logits, x_t[active], alpha_t, process), alpha_s, alpha_t)


def tweedie(scores: Scores, process: ForwardProcess) -> Jumps:
    """Return the exact reverse step of each position from its scores."""
    s = scores.log_score.exp()
    if process.mask_only:
        alpha_t = scores.alpha_t.clamp_min(SMALLEST_ALPHA)  # the one that the scores were scaled by
        return Jumps((s.sum(-1) * (scores.alpha_s - scores.alpha_t) / alpha_t).clamp_max(1.0), s)
    kept = scores.alpha_t / scores.alpha_s
    mass = (1.0 - kept) / interpolating(process).num_noise_tokens
    noise = mass * (1.0 + s.sum(-1))  # 1 is the score of x_t
    others = mass[:, None] * (s - noise[:, None]).clamp_min(0.0)
    others = others.masked_fill(scores.log_score == float("-inf"), 0.0)
    stay = (mass + kept) * (1.0 - noise).clamp_min(0.0)
    total = others.sum(-1)
    known = (kept > LEAST_KEPT) & (total > 0.0)
    return Jumps(torch.where(known, total / torch.where(known, total + stay, 1.0), 0.0), others)


def leaving_no_mask(jumps: Jumps, process: ForwardProcess) -> Jumps:
    """Return jumps that change every position where noise only masks, as the last step must."""
    return Jumps(torch.ones_like(jumps.probability), jumps.weights) if process.mask_only else jumps


def leap(x_t: Tensor, active: Tensor, jumps: Jumps, noise: RowNoise) -> Tensor:
    """Return x_t [B, L] after the active positions changed: first which ones, then to which token."""
    length = x_t.shape[1]
    moves = noise.uniform("moves", length)[active] < jumps.probability
    new = x_t[active]
    new[moves] = categorical(jumps.weights[moves], noise.uniform("tokens", length)[active][moves])
    tokens = x_t.clone()
    tokens[active] = new
    return tokens
