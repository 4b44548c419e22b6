"""The closed form for uniform noise, Rao-Blackwellised over the jumps."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmkit.objectives.base import Objective
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.uniform import Uniform
from dlmkit.tensors import at_positions, scatter
from dlmkit.types import Noised, Prediction, TokenLoss


class UniformElbo(Objective[Uniform]):
    """The bound for uniform noise with the sum over tokens done in closed form.

    With b = (1 - alpha_t) / N, the mass at each token, and p(y) = alpha_t x_theta(y) + b, only p at x_0 and at x_t and
    the sum of log(p / b) are needed; no one-hot of size V is built. Source: arXiv 2506.10892 (Duo), section 3.2, equal
    to arXiv 2412.10193 (UDLM), equation 14. x_theta must be the leave-one-out posterior p(x_0^i | x_t^{-i}) for the
    bound to be tight.
    """

    name = "uniform"
    parameterization = X0LeaveOneOut()
    requires = Uniform

    def __call__(self, prediction: Prediction, noised: Noised, process: Uniform) -> TokenLoss:
        """Return the bound as loss and as nll."""
        where = noised.scored
        # float64 per sequence: at t = 1e-3 and N = 50k, b is 2e-8 and would be lost in 1 - alpha at lower precision.
        alpha64 = process.schedule.alpha(noised.t)
        mass64 = (1.0 - alpha64) / process.num_tokens
        rate64 = -process.schedule.derivative(noised.t) / (alpha64 * process.num_tokens)
        t, alpha, mass, rate = (
            at_positions(value, where) for value in (noised.t, alpha64, mass64, rate64 * noised.weight)
        )

        def bound(
            logits: Tensor, x_0: Tensor, z: Tensor, t: Tensor, alpha: Tensor, mass: Tensor, rate: Tensor
        ) -> Tensor:
            alpha, mass, rate = (value.to(logits.dtype) for value in (alpha, mass, rate))
            log_x_theta = self.parameterization.log_x0(logits, z, t, process)
            return closed_form(log_x_theta, x_0, z, alpha, mass, rate)

        nll = prediction.map_logits(bound, where, noised.x_0[where], noised.x_t[where], t, alpha, mass, rate)
        per_token = scatter(nll, where)
        return TokenLoss(loss=per_token, nll=per_token.detach())


def closed_form(log_x_theta: Tensor, x_0: Tensor, z: Tensor, alpha: Tensor, mass: Tensor, rate: Tensor) -> Tensor:
    """Return the bound's integrand, [n].

    Everything is written in log(p / b) = log1p(alpha x_theta / b), which is small where alpha is: in log p itself the
    terms cancel from order 1 to order alpha^2, and float32 is lost near t = 1.

    Args:
        log_x_theta: [n, V], -inf at the mask.
        x_0: clean tokens, int64 [n].
        z: noisy tokens x_t, int64 [n].
        alpha: [n].
        mass: b, the mass at each token, [n].
        rate: jump rate into each token, [n].
    """
    ratio = alpha / mass
    log_p = torch.log1p(ratio[:, None] * log_x_theta.exp())  # log(p / b), zero at the mask
    log_p_x0, log_p_z = log_p.gather(-1, x_0[:, None])[:, 0], log_p.gather(-1, z[:, None])[:, 0]

    log_q_x0 = torch.log1p(ratio)  # log(q(x_0) / b); elsewhere q = b
    kl = (alpha + mass) * (log_q_x0 - log_p_x0) - mass * (log_p.sum(-1) - log_p_x0)
    log_ratio = torch.where(z == x_0, log_q_x0, 0.0) - log_p_z
    q_z = torch.where(z == x_0, alpha + mass, mass)
    return rate / q_z * (kl + torch.expm1(log_ratio) - log_ratio)
