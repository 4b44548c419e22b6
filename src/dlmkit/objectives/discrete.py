"""The bound in discrete time: T steps, each the exact divergence between two reverse steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dlmkit.objectives.base import Objective, at_positions, scatter
from dlmkit.processes.base import ForwardProcess
from dlmkit.types import Noised, Predictor, TokenLoss


class Discrete(Objective):
    """nll = T * KL(q(x_s | x_t, x_0) || q(x_s | x_t, x_theta)) at t in {1/T, 2/T, ..., 1} and s = t - 1/T.

    Source: arXiv 2107.03006 (D3PM), equation 1; arXiv 2406.07524 (MDLM), equation 7 for absorbing noise. At s = 0 the
    divergence is -log q(x_0 | x_1/T, x_theta), the reconstruction term. It is the bound of a chain of T steps, in each
    of which tokens are drawn independently: larger than that of continuous time for the exact predictor, and tending to
    it as T grows. The prior's term is not in it (see :mod:`dlmkit.objectives.ends`). Computed in float64.

    Args:
        num_steps: T, at least 1.
    """

    predicts = "x0_loo"
    continuous = False

    def __init__(self, num_steps: int) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps {num_steps} is below 1: give the number of steps T, such as 1000")
        self.num_steps = num_steps

    def __call__(self, prediction: Predictor, noised: Noised, process: ForwardProcess) -> TokenLoss:
        """Return the bound as loss and as nll; `noised.t` are multiples of 1 / T."""
        where = process.may_change(noised.x_t) & noised.scored  # elsewhere both reverse steps stay
        x_0, x_t, t = noised.x_0[where], noised.x_t[where], at_positions(noised.t, where)
        s = (t - 1.0 / self.num_steps).clamp_min(0.0)

        def divergence(logits: Tensor, x_0: Tensor, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
            known = F.one_hot(x_0, process.vocab_size).to(t.dtype)
            q = process.posterior(x_t, known, s, t)
            p = process.posterior(x_t, process.log_x0(logits.to(t.dtype), x_t).exp(), s, t)
            occurs = q > 0
            return torch.where(occurs, q * (q / torch.where(occurs, p, 1.0)).clamp_min(1e-300).log(), 0.0).sum(-1)

        kl = prediction.map_logits(divergence, where, x_0, x_t, s, t)
        per_token = scatter(kl * self.num_steps * at_positions(noised.weight, where), where)
        return TokenLoss(loss=per_token, nll=per_token.detach())

    def noise_time(self, t: Tensor) -> Tensor:
        """Return t rounded up to a multiple of 1 / T, so that each has its cell's share of the draws."""
        # Less a rounding error, lest i / T become (i + 1) / T.
        return torch.ceil(t * self.num_steps - 1e-9).clamp(1, self.num_steps) / self.num_steps

    def check(self, process: ForwardProcess) -> None:
        """Refuse a process without noise, with dependent tokens, or that chooses times of its own for copies."""
        if process.num_copies > 1:
            raise ValueError(
                f"objective=discrete with process={type(process).__name__}: the times of its copies are not among the"
                " steps; set process=absorbing"
            )
        if not process.noises or not process.independent:
            raise ValueError(
                f"objective=discrete with process={type(process).__name__}: it needs the reverse steps of independent"
                " noise; set process=absorbing or uniform"
            )

    def head_fraction(self, process: ForwardProcess) -> float:
        """Return the mean over the T times of the share of tokens that a reverse step may change."""
        t = torch.arange(1, self.num_steps + 1, dtype=torch.float64) / self.num_steps
        return float((1.0 - process.alpha(t)).mean()) if process.loo_is_x0 else 1.0
