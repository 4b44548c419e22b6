"""The bound in discrete time: T steps, each the exact divergence between two reverse steps."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from dlmkit.objectives.base import Objective
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.base import ForwardProcess
from dlmkit.ranges import Range, checked
from dlmkit.tensors import at_positions, scatter
from dlmkit.types import Noised, Prediction, TokenLoss


class DiscreteTimeElbo(Objective[ForwardProcess]):
    """nll = T * KL(q(x_s | x_t, x_0) || q(x_s | x_t, x_theta)) at t in {1/T, 2/T, ..., 1} and s = t - 1/T.

    Source: arXiv 2107.03006 (D3PM), equation 1; arXiv 2406.07524 (MDLM), equation 7 for absorbing noise. At s = 0 the
    divergence is -log q(x_0 | x_1/T, x_theta), the reconstruction term. It is the bound of a chain of T steps, in each
    of which tokens are drawn independently: larger than that of continuous time for the exact predictor, and tending to
    it as T grows. The prior term is not in it (see :mod:`dlmkit.evaluation.boundary_terms`). Computed in float64.

    Args:
        num_steps: T, at least 1.

    Raises:
        ValueError: `num_steps` is below 1.
    """

    name = "discrete"
    parameterization = X0LeaveOneOut()
    noisy_positions_only = True
    num_steps: int

    @checked
    def __init__(
        self, num_steps: Annotated[int, Range("[1, 1000000]", "give the number of steps T, such as 1000")]
    ) -> None:
        self.num_steps = num_steps

    def __call__(self, prediction: Prediction, noised: Noised, process: ForwardProcess) -> TokenLoss:
        """Return the bound as loss and as nll; `noised.t` are multiples of 1 / T."""
        where = process.may_change(noised.x_t) & noised.scored  # elsewhere both reverse steps stay
        x_0, x_t, t = noised.x_0[where], noised.x_t[where], at_positions(noised.t, where)
        s = (t - 1.0 / self.num_steps).clamp_min(0.0)

        def divergence(logits: Tensor, x_0: Tensor, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
            clean = F.one_hot(x_0, process.vocab_size).to(t.dtype)
            q = process.posterior(x_t, clean, s, t)
            x_theta = self.parameterization.log_x0(logits.to(t.dtype), x_t, t, process).exp()
            p = process.posterior(x_t, x_theta, s, t)
            occurs = q > 0
            return torch.where(occurs, q * (q / torch.where(occurs, p, 1.0)).clamp_min(1e-300).log(), 0.0).sum(-1)

        kl = prediction.map_logits(divergence, where, x_0, x_t, s, t)
        per_token = scatter(kl * self.num_steps * at_positions(noised.weight, where), where)
        return TokenLoss(loss=per_token, nll=per_token.detach())
