"""The closed form for hybrid noise (GIDD), without a [B, L, V] anywhere."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dlmkit.objectives.base import MaxWeight, Objective, check_weighting
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.hybrid import Hybrid
from dlmkit.ranges import checked
from dlmkit.tensors import at_positions, scatter
from dlmkit.types import Noised, Prediction, TokenLoss

Weighting = Literal["bound", "clipped"]
WEIGHTINGS = ("bound", "clipped")

_SMALLEST = torch.finfo(torch.float32).tiny
_LINEAR_ABOVE = 40.0
"""Where log(1 + e^x) - x < 1e-17, below the resolution of float64; F.softplus would switch at 20, where it is 2e-9."""


class HybridElbo(Objective[Hybrid]):
    """nll = w_t(z, x_0) * [KL(q || p) + q(z) / p(z) - log(q(z) / p(z)) - 1] with z = x_t, q and p = q_t(. | x_theta).

    w_t(z, x_0) is the jump rate into z over q(z): 1 / (t (1 - t)) at a mask, where only KL is left. The mass is the
    same at every token but the mask, so that p is needed at x_0 and z, and log(p / mass) summed over tokens; the mask
    itself has p = q. Equal to `elbo`, and to `masked` without uniform noise.
    Source: arXiv 2503.04482 (GIDD), theorem on the continuous-time ELBO and the weights of its hybrid noise.
    x_theta must be the leave-one-out posterior p(x_0^i | x_t^{-i}) for the bound to be tight.

    Args:
        weighting: of the training loss; the nll always carries the bound's weight.
            `bound`: the bound itself; `clipped`: w_t at most `max_weight`, since at masked and at replaced tokens w_t
            grows like 1 / t towards the data and 1 / (1 - t) towards the noise.
        max_weight: the clip, > 0; read by `clipped` alone, ``None`` otherwise.

    Raises:
        ValueError: an unknown weighting, or a `max_weight` that does not go with it.
    """

    name = "hybrid"
    parameterization = X0LeaveOneOut()
    requires = Hybrid

    @checked
    def __init__(self, weighting: Weighting = "bound", max_weight: MaxWeight = None) -> None:
        check_weighting(weighting, WEIGHTINGS, max_weight)
        self.max_weight = max_weight

    def __call__(self, prediction: Prediction, noised: Noised, process: Hybrid) -> TokenLoss:
        """Return the weighted divergence and the bound."""
        where = noised.scored
        x_0, z = noised.x_0[where], noised.x_t[where]
        alpha64, at_mask64, mass64 = process.shares(noised.t)
        # The mass at tokens is 0 without uniform noise, and its logarithm is taken: the smallest float32 replaces it.
        values = (noised.t, alpha64, at_mask64, mass64.clamp_min(_SMALLEST))
        t, alpha, at_mask, mass = (at_positions(value, where) for value in values)
        into_mask, into_token = (at_positions(rate, where) for rate in process.rates(noised.t))
        masked = z == process.mask_id
        rate = torch.where(masked, into_mask, into_token)
        weight = rate / torch.where(masked, at_mask, mass + torch.where(z == x_0, alpha, 0.0))

        def inner(logits: Tensor, x_0: Tensor, z: Tensor, t: Tensor, alpha: Tensor, mass: Tensor) -> Tensor:
            log_ratio = (alpha.log() - mass.log()).to(logits.dtype)
            alpha, mass = alpha.to(logits.dtype), mass.to(logits.dtype)
            log_x_theta = self.parameterization.log_x0(logits, z, t, process)
            return divergence(log_x_theta, x_0, z, alpha, mass, log_ratio, process.mask_id)

        value = prediction.map_logits(inner, where, x_0, z, t, alpha, mass)
        times = at_positions(noised.weight, where)
        nll = value.detach() * (weight * times).to(value.dtype)
        loss = value * (weight.clamp_max(self.max_weight or float("inf")) * times).to(value.dtype)
        return TokenLoss(loss=scatter(loss, where), nll=scatter(nll, where))


def divergence(
    log_x_theta: Tensor, x_0: Tensor, z: Tensor, alpha: Tensor, mass: Tensor, log_alpha_over_mass: Tensor, mask_id: int
) -> Tensor:
    """Return KL(q || p) + q(z) / p(z) - log(q(z) / p(z)) - 1, [n].

    Everything is written in log(p / b) = log(1 + alpha x_theta / b): zero at the mask, small where alpha is, so that
    near t = 1 no terms of order 1 cancel.

    Args:
        log_x_theta: [n, V], -inf at the mask.
        x_0: clean tokens, int64 [n].
        z: noisy tokens, int64 [n].
        alpha: [n].
        mass: b, the mass at each token but the mask, [n], > 0.
        log_alpha_over_mass: log(alpha / b) [n], computed in float64.
        mask_id: id of the mask token, whose q(z) / p(z) is 1.
    """
    log_p = F.softplus(log_alpha_over_mass[:, None] + log_x_theta, threshold=_LINEAR_ABOVE)  # log(p / b)
    log_p_x0, log_p_z = log_p.gather(-1, x_0[:, None])[:, 0], log_p.gather(-1, z[:, None])[:, 0]

    log_q_x0 = F.softplus(log_alpha_over_mass, threshold=_LINEAR_ABOVE)  # log(q(x_0) / b); elsewhere q = b
    kl = (alpha + mass) * (log_q_x0 - log_p_x0) - mass * (log_p.sum(-1) - log_p_x0)
    log_ratio = torch.where(z == x_0, log_q_x0, 0.0) - log_p_z
    return kl + torch.where(z == mask_id, 0.0, torch.expm1(log_ratio) - log_ratio)
