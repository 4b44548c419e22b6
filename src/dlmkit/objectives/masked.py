"""The closed form for absorbing noise: weighted cross-entropy at the masked positions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dlmkit.objectives.base import Objective, at_positions, check_weighting, masked_share, scatter
from dlmkit.processes.absorbing import Absorbing
from dlmkit.processes.base import ForwardProcess
from dlmkit.types import Noised, Predictor, TokenLoss

Weighting = Literal["bound", "constant", "clipped"]
WEIGHTINGS = ("bound", "constant", "clipped")


class Masked(Objective):
    """nll = -alpha'_t / (1 - alpha_t) * sum over masked i of -log p(x_0^i | x_t).

    Source: arXiv 2406.07524 (MDLM), equation 10; arXiv 2410.17891, equations 6 and 7. The network runs its head at the
    masked positions only. Carried-over clean tokens and a mask that is never predicted are built in.

    Args:
        weighting: of the training loss; the nll always carries the bound's weight.
            `bound`: the bound itself; `constant`: weight 1 on each masked token (arXiv 2602.15014: lower variance, not
            a bound); `clipped`: the bound's weight, at most `max_weight`.
        max_weight: the clip, > 0; read by `clipped` alone, ``None`` otherwise.
    """

    predicts = "x0_loo"

    def __init__(self, weighting: Weighting = "bound", max_weight: float | None = None) -> None:
        check_weighting(weighting, WEIGHTINGS, max_weight)
        self.weighting = weighting
        self.max_weight = max_weight

    def __call__(self, prediction: Predictor, noised: Noised, process: ForwardProcess) -> TokenLoss:
        """Return the weighted cross-entropy and the bound; zero at clean positions."""
        absorbing = _absorbing(process)
        where = (noised.x_t != noised.x_0) & noised.scored
        share = absorbing.noised_share(noised.t, noised.scored)
        bound = -absorbing.schedule.derivative(noised.t) / share
        weight = at_positions(self._loss_weight(bound) * noised.weight, where)
        log_prob = prediction.token_log_prob(noised.x_0, where, weight)
        loss = -log_prob * weight.to(log_prob.dtype)
        nll = -log_prob.detach() * at_positions(bound * noised.weight, where).to(log_prob.dtype)
        return TokenLoss(loss=scatter(loss, where), nll=scatter(nll, where))

    def check(self, process: ForwardProcess) -> None:
        """Refuse any noise but the absorbing one."""
        _absorbing(process)

    def head_fraction(self, process: ForwardProcess) -> float:
        """Return the mean of 1 - alpha(t) over the copies of a block: the masked share when t is uniform."""
        return masked_share(process)

    def _loss_weight(self, bound: Tensor) -> Tensor:
        if self.weighting == "constant":
            return torch.ones_like(bound)
        if self.max_weight is not None:
            return bound.clamp_max(self.max_weight)
        return bound


def _absorbing(process: ForwardProcess) -> Absorbing:
    if not isinstance(process, Absorbing):
        raise ValueError(
            f"objective=masked with process={type(process).__name__}: the closed form holds for absorbing noise only;"
            " set process=absorbing, or objective=elbo"
        )
    return process
