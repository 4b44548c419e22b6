"""The closed form for hybrid noise (GIDD), without a [B, L, V] anywhere."""

from __future__ import annotations

from typing import Literal

import torch

from dlmkit.objectives.base import MaxWeight, Objective, check_weighting
from dlmkit.objectives.equal_mass import EqualMassDivergence
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.hybrid import Hybrid
from dlmkit.ranges import checked
from dlmkit.tensors import at_positions, scatter
from dlmkit.types import Noised, Prediction, TokenLoss

Weighting = Literal["bound", "clipped"]
WEIGHTINGS = ("bound", "clipped")

_SMALLEST = torch.finfo(torch.float32).tiny


class HybridElbo(Objective[Hybrid]):
    """nll = w_t(z, x_0) * [KL(q || p) + q(z) / p(z) - log(q(z) / p(z)) - 1] with z = x_t, q and p = q_t(. | x_theta).

    w_t(z, x_0) is the jump rate into z over q(z): 1 / (t (1 - t)) at a mask, where only KL is left. The mass is the
    same at every token but the mask, see :class:`dlmkit.objectives.equal_mass.EqualMassDivergence`. Equal to `elbo`,
    and to `masked` without uniform noise.
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
        where = noised.scored & process.may_change(noised.x_t)
        x_0, z = noised.x_0[where], noised.x_t[where]
        alpha64, at_mask64, mass64 = process.shares(noised.t)
        # The mass at tokens is 0 without uniform noise, and is divided by: the smallest float32 replaces it.
        values = (alpha64, at_mask64, mass64.clamp_min(_SMALLEST))
        alpha, at_mask, mass = (at_positions(value, where) for value in values)
        into_mask, into_token = (at_positions(rate, where) for rate in process.rates(noised.t))
        masked = z == process.mask_id
        rate = torch.where(masked, into_mask, into_token)
        bound = rate / torch.where(masked, at_mask, mass + torch.where(z == x_0, alpha, 0.0))
        times = at_positions(noised.weight, where)
        weight = bound.clamp_max(self.max_weight or float("inf")) * times
        loss, value = prediction.weighted(EqualMassDivergence(), where, weight, x_0, z, alpha, mass)
        nll = value * (bound * times).to(value.dtype)
        return TokenLoss(loss=scatter(loss, where), nll=scatter(nll, where))
