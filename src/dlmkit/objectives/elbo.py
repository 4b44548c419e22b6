"""The generic bound, from the process's coefficients alone: slow, memory-hungry, and the reference of closed forms."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmkit.objectives.base import Objective
from dlmkit.parameterizations.base import Parameterization
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.base import ForwardProcess
from dlmkit.tensors import at_positions, row_of, scatter
from dlmkit.types import Noised, Prediction, TokenLoss


class GenericElbo(Objective[ForwardProcess]):
    """Continuous-time bound for any process with q_t(z | x) = alpha_t 1[z = x] + mass_t(z).

    With q = q_t(. | x_0), p = q_t(. | x_theta), z = x_t and the jump rate r_t(z), the integrand is

        r_t(z) / q(z) * [ KL(q || p) + q(z) / p(z) - log(q(z) / p(z)) - 1 ].

    Source: arXiv 2503.04482 (GIDD), theorem 3.6 with the weight r_t(z) / q(z); it follows from the path measure of a
    continuous-time Markov chain whose rate into z does not depend on where the jump starts. Computed in float64.
    """

    name = "elbo"
    parameterization: Parameterization = X0LeaveOneOut()

    def __call__(self, prediction: Prediction, noised: Noised, process: ForwardProcess) -> TokenLoss:
        """Return the bound as loss and as nll."""
        where = noised.scored
        x_0, z = noised.x_0[where], noised.x_t[where]
        alpha, mass = process.coefficients(noised.t)
        row = row_of(where)

        logits = prediction.logits(where).double()
        log_x_theta = self.parameterization.log_x0(logits, z, noised.t[row], process)
        p = alpha[row, None] * log_x_theta.exp() + mass[row]
        q = mass[row].scatter_add(-1, x_0[:, None], alpha[row, None])
        rate = process.rate(noised.t)[row].gather(-1, z[:, None])[:, 0]

        nll = integrand(q, p, z, rate) * at_positions(noised.weight, where)
        per_token = scatter(nll, where)
        return TokenLoss(loss=per_token, nll=per_token.detach())


def integrand(q: Tensor, p: Tensor, z: Tensor, rate: Tensor) -> Tensor:
    """Return rate / q(z) * [KL(q || p) + q(z)/p(z) - log(q(z)/p(z)) - 1], [N], from q and p [N, V], z and rate [N]."""
    kl = torch.where(q > 0, q * (q.clamp_min(1e-300).log() - p.clamp_min(1e-300).log()), 0.0).sum(-1)
    q_z, p_z = q.gather(-1, z[:, None])[:, 0], p.gather(-1, z[:, None])[:, 0]
    # Where the chain cannot have jumped (rate 0: a clean token under absorbing noise) the integrand is 0 for any p.
    jumps = rate > 0
    ratio = torch.where(jumps, q_z / torch.where(jumps, p_z, 1.0), 1.0)
    return torch.where(jumps, rate / q_z * (kl + ratio - ratio.log() - 1.0), 0.0)
