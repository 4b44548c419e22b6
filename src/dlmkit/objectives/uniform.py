"""The closed form for uniform noise, Rao-Blackwellised over the jumps."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmkit.objectives.base import Objective, at_positions, scatter
from dlmkit.processes.base import ForwardProcess
from dlmkit.processes.uniform import Uniform
from dlmkit.types import Noised, Predictor, TokenLoss


class UniformBound(Objective):
    """The bound for uniform noise with the sum over tokens done in closed form.

    With b = (1 - alpha_t) / N and p(y) = alpha_t x_theta(y) + b, only p at x_0 and at x_t and the sum of log p are
    needed; no one-hot of size V is built. Source: arXiv 2506.10892 (Duo), section 3.2, equal to arXiv 2412.10193
    (UDLM), equation 14. x_theta must be the leave-one-out posterior p(x_0^i | x_t^{-i}) for the bound to be tight.
    """

    predicts = "x0_loo"

    def __call__(self, prediction: Predictor, noised: Noised, process: ForwardProcess) -> TokenLoss:
        """Return the bound as loss and as nll."""
        uniform = _uniform(process)
        where = noised.scored
        # float64 per sequence: at t = 1e-3 and N = 50k, b is 2e-8 and would be lost in 1 - alpha at lower precision.
        alpha64 = uniform.schedule.alpha(noised.t)
        floor64 = (1.0 - alpha64) / uniform.num_tokens
        slope64 = -uniform.schedule.derivative(noised.t) / (alpha64 * uniform.num_tokens)
        alpha, floor, rate = (at_positions(value, where) for value in (alpha64, floor64, slope64 * noised.weight))
        x_0, z = noised.x_0[where], noised.x_t[where]

        def bound(logits: Tensor, x_0: Tensor, z: Tensor, alpha: Tensor, floor: Tensor, rate: Tensor) -> Tensor:
            alpha, floor, rate = (value.to(logits.dtype) for value in (alpha, floor, rate))
            return closed_form(uniform.log_x0(logits, z), x_0, z, alpha, floor, rate, uniform)

        nll = prediction.map_logits(bound, where, x_0, z, alpha, floor, rate)
        per_token = scatter(nll, where)
        return TokenLoss(loss=per_token, nll=per_token.detach())

    def check(self, process: ForwardProcess) -> None:
        """Refuse any noise but the uniform one."""
        _uniform(process)


def closed_form(
    log_x_theta: Tensor, x_0: Tensor, z: Tensor, alpha: Tensor, floor: Tensor, rate: Tensor, process: Uniform
) -> Tensor:
    """Return the bound's integrand [n] from log x_theta [n, V] and per-token x_0, z, alpha, b = floor, and rate [n]."""
    num_tokens = process.num_tokens
    log_p = torch.log(alpha[:, None] * log_x_theta.exp() + floor[:, None])
    total = log_p.sum(-1)
    if process.mask_id is not None:
        total = total - log_p[:, process.mask_id]
    log_p_x, log_p_z = log_p.gather(-1, x_0[:, None])[:, 0], log_p.gather(-1, z[:, None])[:, 0]

    peak = alpha + floor
    entropy = peak * peak.log() + (num_tokens - 1) * floor * floor.log()
    kl = entropy - alpha * log_p_x - floor * total
    log_q_z = torch.where(z == x_0, peak, floor).log()
    log_ratio = log_q_z - log_p_z
    return rate * (-log_q_z).exp() * (kl + log_ratio.exp() - log_ratio - 1.0)


def _uniform(process: ForwardProcess) -> Uniform:
    if not isinstance(process, Uniform):
        raise ValueError(
            f"objective=uniform with process={type(process).__name__}: the closed form holds for uniform noise only;"
            " set process=uniform, or objective=elbo"
        )
    return process
