"""The divergence in the bound of noise that puts the same mass on every token, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmkit.types import ClosedForm


class EqualMassDivergence(ClosedForm):
    """KL(q || p) + q(z) / p(z) - log(q(z) / p(z)) - 1 with q = alpha 1[x_0] + b and p = alpha x_theta + b, [n].

    x_theta is the softmax of the logits and b the mass at each token; the mask, whose mass may differ, has x_theta = 0
    and p = q. With r = alpha / b, v(y) = r x_theta(y) and log(p / b) = log(1 + v) it is

        (alpha + b) log(1 + r) - alpha log(1 + v(x_0)) - b sum_y log(1 + v(y)) + e^d - 1 - d,
        d = log(q(z) / p(z)) = log(1 + r) 1[z = x_0] - log(1 + v(z)),

    so that only p at x_0 and at z and one sum are needed. Written in log(p / b), which is small where alpha is: in
    log p itself the terms cancel from order 1 to order alpha^2, and float32 is lost near t = 1.

    The gradient: with u = v / (1 + v) = d log(1 + v) / d log v, that with respect to log x_theta(y) is

        -b u(y) - alpha u(x_0) 1[y = x_0] - (e^d - 1) u(z) 1[y = z],

    and through the softmax the sum of it over y, times x_theta(y), is subtracted:

        G x_theta(y) - b u(y) - alpha u(x_0) 1[y = x_0] - (e^d - 1) u(z) 1[y = z],
        G = b sum_y u(y) + alpha u(x_0) + (e^d - 1) u(z).

    Source: arXiv 2506.10892 (Duo), section 3.2, for uniform noise; arXiv 2503.04482 (GIDD) for hybrid noise.
    """

    def __call__(self, logits: Tensor, *arguments: Tensor) -> Tensor:
        """Return the values [n].

        Args:
            logits: [n, V], -inf at the mask.
            arguments: x_0 and z, int64 [n]; alpha and b, float64 [n], b > 0.
        """
        x_0, z, alpha, mass = arguments
        alpha, mass, ratio = _cast(alpha, mass, logits.dtype)
        log_p = torch.log1p(ratio[:, None] * logits.log_softmax(-1).exp())  # log(p / b), zero at the mask
        at_x_0, at_z = log_p.gather(-1, torch.stack([x_0, z], -1)).unbind(-1)
        log_q = torch.log1p(ratio)
        log_ratio = torch.where(z == x_0, log_q, 0.0) - at_z
        kl = (alpha + mass) * (log_q - at_x_0) - mass * (log_p.sum(-1) - at_x_0)
        return kl + torch.expm1(log_ratio) - log_ratio

    def to_gradient_(self, logits: Tensor, *arguments: Tensor) -> Tensor:
        """Return the values [n], the logits replaced by their gradients; arguments as in a call."""
        x_0, z, alpha, mass = arguments
        alpha, mass, ratio = _cast(alpha, mass, logits.dtype)
        tokens = torch.stack([x_0, z], -1)
        x_theta = torch.softmax(logits, -1, out=logits)
        v = x_theta * ratio[:, None]
        chosen = v.gather(-1, tokens)
        at_x_0, at_z = torch.log1p(chosen).unbind(-1)
        log_q = torch.log1p(ratio)
        log_ratio = torch.where(z == x_0, log_q, 0.0) - at_z
        excess = torch.expm1(log_ratio)
        kl = (alpha + mass) * (log_q - at_x_0) - mass * (torch.log1p(v).sum(-1) - at_x_0)

        u = v.div_(v + 1.0)
        sparse = chosen / (chosen + 1.0) * torch.stack([alpha, excess], -1)
        common = mass * u.sum(-1) + sparse.sum(-1)
        x_theta.mul_(common[:, None]).addcmul_(u, mass[:, None], value=-1.0).scatter_add_(-1, tokens, -sparse)
        return kl + excess - log_ratio


def _cast(alpha: Tensor, mass: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return alpha, b and alpha / b in the dtype of the logits, the ratio computed in their own."""
    return alpha.to(dtype), mass.to(dtype), (alpha / mass).to(dtype)
