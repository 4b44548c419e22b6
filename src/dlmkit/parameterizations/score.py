"""The network predicts scores: ratios p_t(y) / p_t(x_t) of probabilities that differ in one position."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlmkit.parameterizations.base import Parameterization
from dlmkit.processes.base import ForwardProcess, InterpolatingProcess

SMALLEST_ALPHA = 1e-30
"""Stands for alpha = 0, where every ratio to a masked token is zero and its logarithm is needed; a normal float32."""

_SMALLEST = 1e-300


class Score(Parameterization):
    """log s(y) = log of p_t(x_t with y at this position) / p_t(x_t), up to a scaling by the noise level.

    With sigma = -log(alpha), the total noise of SEDD, the raw output is scaled so that zero output is the score of a
    uniform prediction:

    - absorbing: log s = logits - log(expm1(sigma)) - log(V - 1): the ratio of a clean token to the mask is
      p(y) alpha / (1 - alpha) = p(y) / expm1(sigma). At the optimum the logits are log p(y) + log(V - 1) and do not
      depend on t.
    - uniform: log s = logits. At t = 1 all tokens are equally likely; near t = 0 the scores depend strongly on t.

    The outputs at x_t itself, whose ratio is 1, and at the mask are not used. Source: arXiv 2310.16834 (SEDD), its
    parameterisation of the output. Defined for noise that interpolates with one distribution
    (:class:`dlmkit.processes.base.InterpolatingProcess`): under hybrid noise a clean token may become a mask, for which
    a prediction has no entry.
    """

    name = "score"

    def log_score(self, logits: Tensor, x_t: Tensor, alpha: Tensor, process: ForwardProcess) -> Tensor:
        """Return log s(y) [N, V], -inf at x_t itself and at the mask, so that sums over a row leave these out.

        Args:
            logits: raw output of the network, [N, V].
            x_t: noisy tokens, int64 [N]; under absorbing noise masks, as no other token may change.
            alpha: float64 [N], in [0, 1].
            process: absorbing or uniform noise.
        """
        offset = log_offset(alpha, process)
        if offset is not None:
            logits = logits + offset.to(logits.dtype)[:, None]
        unused = torch.arange(process.vocab_size, device=logits.device) == x_t[:, None]
        if process.mask_id is not None:
            unused[:, process.mask_id] = True
        return logits.masked_fill(unused, float("-inf"))

    def log_marginal(self, logits: Tensor, x_t: Tensor, t: Tensor, process: ForwardProcess) -> Tensor:
        """Return the scores, normalised with the one of x_t itself, which is 1."""
        scores = self.log_score(logits, x_t, process.alpha(t), process)
        return scores.scatter(-1, x_t[:, None], 0.0).log_softmax(-1)

    def log_x0(self, logits: Tensor, x_t: Tensor, t: Tensor, process: ForwardProcess) -> Tensor:
        """Return the leave-one-out posterior: the noise undone, x_theta = (p_t - mass) / alpha where that is positive.

        Where alpha = 0 the scores contain nothing about x_0 under uniform noise, and the result is uniform.
        """
        if process.mask_only:
            masked = logits.log_softmax(-1)
            carried = torch.full_like(masked, float("-inf")).scatter_(-1, x_t[:, None], 0.0)
            return torch.where(process.may_change(x_t)[:, None], masked, carried)
        alpha, mass = process.coefficients(t)
        p_t = self.log_marginal(logits.double(), x_t, t, process).exp()
        x_theta = (p_t - mass).clamp_min(0.0) / alpha[:, None].clamp_min(SMALLEST_ALPHA)
        total = x_theta.sum(-1, keepdim=True)
        known = torch.where(total > 0, x_theta / total.clamp_min(_SMALLEST), (mass > 0) / (mass > 0).sum(-1)[:, None])
        return known.log()

    def from_log_x0(self, log_x0: Tensor, x_t: Tensor, t: Tensor, process: ForwardProcess) -> Tensor:
        """Return the raw output whose scores are p(y) / p(x_t) with p = alpha x_theta + mass."""
        if process.mask_only:  # s = p(y) alpha / (1 - alpha) before the scaling, in which alpha cancels
            return log_x0.log_softmax(-1) + math.log(interpolating(process).num_tokens)
        alpha, mass = process.coefficients(t)
        no_noise = mass == 0.0
        p = alpha[:, None] * log_x0.double().exp() + mass
        log_p = p.masked_fill(no_noise, 1.0).log()
        log_s = log_p - log_p.gather(-1, x_t[:, None])
        return log_s.masked_fill(no_noise, float("-inf")).to(log_x0.dtype)


def log_offset(alpha: Tensor, process: ForwardProcess) -> Tensor | None:
    """Return the scaling of the raw output, log of the score of a uniform prediction, [N]; ``None`` where that is 0."""
    if not process.mask_only:
        return None
    alpha = alpha.clamp_min(SMALLEST_ALPHA)
    return alpha.log() - torch.log1p(-alpha) - math.log(interpolating(process).num_tokens)


def interpolating(process: ForwardProcess) -> InterpolatingProcess:
    """Return the process, refusing one that scores are not defined for.

    Raises:
        ValueError: noise that does not interpolate with one distribution.
    """
    if not isinstance(process, InterpolatingProcess):
        raise ValueError(
            f"{process.label} has no scores: they are defined for absorbing and uniform noise; set process=absorbing"
            " or process=uniform"
        )
    return process
