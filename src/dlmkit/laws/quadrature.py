"""Integrals over t without Monte Carlo error: Gauss-Legendre in alpha. t = 0 is data, t = 1 is noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmkit.processes.base import ForwardProcess


@dataclass(frozen=True)
class Nodes:
    """Quadrature over t: the integral of f over [t(alpha_top), t(alpha_bottom)] is sum(weight * f(t)).

    Attributes:
        t: float64 [K].
        weight: float64 [K].
    """

    t: Tensor
    weight: Tensor


def nodes(process: ForwardProcess, num: int = 64, top: float = 1.0, bottom: float | None = None) -> Nodes:
    """Gauss-Legendre in alpha, so that one rule serves every schedule, crowded at both ends.

    The integrands have x log x singularities at alpha = 1, and t(alpha) has square roots where alpha' vanishes; with
    alpha = top - range * w(v), w the smoothstep of order 5, neither is left in v.

    Args:
        process: whose alpha(t) is walked along.
        num: K.
        top: alpha to start from.
        bottom: where to stop; ``None`` for alpha(1).
    """
    one = torch.ones(1, dtype=torch.float64)
    bottom = float(process.alpha(one)) if bottom is None else bottom
    v, gauss = gauss_legendre(num)
    share = v**3 * (10 - 15 * v + 6 * v**2)
    slope = 30 * v**2 * (1 - v) ** 2
    t = time_at(process, top - (top - bottom) * share)
    return Nodes(t, gauss * (top - bottom) * slope / -alpha_slope(process, t))


def time_at(process: ForwardProcess, alpha: Tensor) -> Tensor:
    """The t with alpha(t) = `alpha`, by bisection down to the spacing of float64."""
    low, high = torch.zeros_like(alpha), torch.ones_like(alpha)
    for _ in range(60):
        middle = (low + high) / 2
        above = process.alpha(middle) > alpha
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (low + high) / 2


def alpha_slope(process: ForwardProcess, t: Tensor) -> Tensor:
    """Return d alpha / dt at t [K], by autograd rather than by the part's own derivative."""
    with torch.enable_grad():
        t = t.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(process.alpha(t).sum(), t)
    return slope


def gauss_legendre(num: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1] (Golub and Welsch: eigenvalues of the Jacobi matrix)."""
    k = torch.arange(1, num, dtype=torch.float64)
    off = k / (4 * k**2 - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return (values + 1) / 2, vectors[0] ** 2
