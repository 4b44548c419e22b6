"""The closed form for uniform noise, Rao-Blackwellised over the jumps."""

from __future__ import annotations

import torch

from dlmkit.objectives.base import Objective
from dlmkit.objectives.equal_mass import EqualMassDivergence
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.uniform import Uniform
from dlmkit.tensors import at_positions, scatter
from dlmkit.types import Noised, Prediction, TokenLoss


class UniformElbo(Objective[Uniform]):
    """nll = rate / q(z) * [KL(q || p) + q(z) / p(z) - log(q(z) / p(z)) - 1], the sum over tokens done in closed form.

    Here z = x_t, q = q_t(. | x_0), p = q_t(. | x_theta), and rate is the jump rate into each token; see
    :class:`dlmkit.objectives.equal_mass.EqualMassDivergence`, with b = (1 - alpha_t) / N, the mass at each token.
    Source: arXiv 2506.10892 (Duo), section 3.2, equal to arXiv 2412.10193 (UDLM), equation 14. x_theta must be the
    leave-one-out posterior p(x_0^i | x_t^{-i}) for the bound to be tight.
    """

    name = "uniform"
    parameterization = X0LeaveOneOut()
    requires = Uniform

    def __call__(self, prediction: Prediction, noised: Noised, process: Uniform) -> TokenLoss:
        """Return the bound as loss and as nll."""
        where = noised.scored
        x_0, z = noised.x_0[where], noised.x_t[where]
        # float64 per sequence: at t = 1e-3 and N = 50k, b is 2e-8 and would be lost in 1 - alpha at lower precision.
        alpha64 = process.schedule.alpha(noised.t)
        mass64 = (1.0 - alpha64) / process.num_tokens
        rate64 = -process.schedule.derivative(noised.t) / (alpha64 * process.num_tokens)
        alpha, mass, rate = (at_positions(value, where) for value in (alpha64, mass64, rate64 * noised.weight))
        weight = rate / (mass + torch.where(z == x_0, alpha, 0.0))
        per_token = scatter(prediction.weighted(EqualMassDivergence(), where, weight, x_0, z, alpha, mass).loss, where)
        return TokenLoss(loss=per_token, nll=per_token.detach())
