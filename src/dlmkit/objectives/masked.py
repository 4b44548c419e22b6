"""The closed form for absorbing noise: weighted cross-entropy at the masked positions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dlmkit.objectives.base import MaxWeight, Objective, check_weighting
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.absorbing import Absorbing
from dlmkit.ranges import checked
from dlmkit.tensors import at_positions, scatter
from dlmkit.types import Noised, Prediction, TokenLoss

Weighting = Literal["bound", "constant", "clipped"]
WEIGHTINGS = ("bound", "constant", "clipped")


class MaskedElbo(Objective[Absorbing]):
    """nll of a masked token = -weight * alpha'_t / (1 - alpha_t) * -log p(x_0^i | x_t), with `Noised.weight`.

    `Noised.noise_rate`, where there is one, takes the place of 1 - alpha_t.

    Source: arXiv 2406.07524 (MDLM), equation 10; arXiv 2410.17891, equations 6 and 7. The network runs its head at the
    masked positions only; clean tokens are carried over, and the mask is never predicted.

    Args:
        weighting: of the training loss; the nll always carries the bound's weight.
            `bound`: the bound itself; `constant`: weight 1 on each masked token (arXiv 2602.15014: lower variance, not
            a bound); `clipped`: the bound's weight, at most `max_weight`.
        max_weight: the clip, > 0; read by `clipped` alone, ``None`` otherwise.

    Raises:
        ValueError: an unknown weighting, or a `max_weight` that does not go with it.
    """

    name = "masked"
    parameterization = X0LeaveOneOut()
    requires = Absorbing
    noisy_positions_only = True
    divides_by_noise_rate = True

    @checked
    def __init__(self, weighting: Weighting = "bound", max_weight: MaxWeight = None) -> None:
        check_weighting(weighting, WEIGHTINGS, max_weight)
        self.weighting = weighting
        self.max_weight = max_weight

    def __call__(self, prediction: Prediction, noised: Noised, process: Absorbing) -> TokenLoss:
        """Return the weighted cross-entropy and the bound; zero at clean positions."""
        where = (noised.x_t != noised.x_0) & noised.scored
        mask_rate = 1.0 - process.schedule.alpha(noised.t) if noised.noise_rate is None else noised.noise_rate
        bound = -process.schedule.derivative(noised.t) / mask_rate
        weight = at_positions(self._loss_weight(bound) * noised.weight, where)
        total, values = prediction.weighted_nll(noised.x_0, where, weight)
        loss = values * weight.to(values.dtype)
        nll = values.detach() * at_positions(bound * noised.weight, where).to(values.dtype)
        return TokenLoss(loss=scatter(loss, where), nll=scatter(nll, where), fused=total)

    def _loss_weight(self, bound: Tensor) -> Tensor:
        if self.weighting == "constant":
            return torch.ones_like(bound)
        if self.max_weight is not None:
            return bound.clamp_max(self.max_weight)
        return bound
