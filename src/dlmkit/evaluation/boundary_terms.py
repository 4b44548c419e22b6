"""The reconstruction and prior terms of the NELBO; the diffusion term is the integral of nll over t in [0, 1].

    -log p(x_0) <= E[-log p(x_0 | x_t at t = 0)] + integral of E[nll] over [0, 1] + KL(q(x_1 | x_0) || p(x_1))

The first term, the reconstruction, is zero where alpha(0) = 1; the last, the prior term, where alpha(1) = 0. Source:
arXiv 2107.00630 (VDM), equation 6; arXiv 2107.03006 (D3PM), equation 1. Shapes: N positions, V vocabulary. Nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlmkit.objectives.base import Objective
from dlmkit.objectives.block import fold_blocks
from dlmkit.processes.base import ForwardProcess
from dlmkit.tensors import at_positions, scatter
from dlmkit.types import Noised, Prediction

_SMALLEST = 1e-300  # the probability of a token that is there although a prediction excludes it: 690 nats


def reconstruction(
    objective: Objective[Any], prediction: Prediction, noised: Noised, process: ForwardProcess
) -> Tensor:
    """Return -log p(x_0 | x_t) per token, float64 [B, L], for `noised` at t = 0.

    By Bayes on the network's leave-one-out posterior; zero at clean tokens under absorbing noise.
    """
    prediction, rows = fold_blocks(prediction, noised)
    where = process.may_change(rows.x_t) & rows.scored

    def surprisal(logits: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, mass = process.coefficients(t)
        p_t = objective.parameterization.log_marginal(logits.double(), x_t, t, process).exp()
        x_theta = ((p_t - mass) / alpha[:, None]).clamp_min(0.0)
        likelihood = mass.gather(-1, x_t[:, None]) + alpha[:, None] * F.one_hot(x_t, process.vocab_size)
        joint = x_theta * likelihood
        share = joint.gather(-1, x_0[:, None])[:, 0] / joint.sum(-1).clamp_min(_SMALLEST)
        return -share.clamp_min(_SMALLEST).log()

    return _per_token(prediction, rows, where, surprisal).view(noised.x_0.shape)


def prior(objective: Objective[Any], prediction: Prediction, noised: Noised, process: ForwardProcess) -> Tensor:
    """Return KL(q(x_1 | x_0) || p(x_1)) per token, float64 [B, L]; `noised` holds a prior sample as x_t, at t = 1.

    p(x_1) is the distribution that generation starts from, its tokens independent. A sample of pure absorbing noise has
    no clean tokens, while q(x_1 | x_0) has a share alpha(1) of them, and the divergence would be infinite. So
    under absorbing noise one more reverse step is added at the start of generation: from pure noise to x_1, with the
    network's prediction for x_0. The term is then alpha(1) times -log p(x_0 | all masked).
    """
    prediction, rows = fold_blocks(prediction, noised)

    def divergence(logits: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, mass = process.coefficients(t)
        q = mass + alpha[:, None] * F.one_hot(x_0, process.vocab_size)
        if process.mask_only:
            log_p = objective.parameterization.log_marginal(logits.double(), x_t, t, process)
        else:
            log_p = (mass / mass.sum(-1, keepdim=True)).log()
        occurs = q > 0
        log_ratio = torch.where(occurs, q, 1.0).log() - torch.where(occurs, log_p, 0.0)
        return torch.where(occurs, q * log_ratio, 0.0).sum(-1)

    return _per_token(prediction, rows, rows.scored, divergence).view(noised.x_0.shape)


def _per_token(prediction: Prediction, noised: Noised, where: Tensor, term: Callable[..., Tensor]) -> Tensor:
    arguments = (noised.x_0[where], noised.x_t[where], at_positions(noised.t, where))
    return scatter(prediction.map_logits(term, where, *arguments), where)
