"""The number of masked tokens is fixed by t: one source of variance less in the masked bound."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmkit.corruption.base import Corruption
from dlmkit.processes.absorbing import Absorbing
from dlmkit.processes.base import ForwardProcess


class FixedCount(Corruption):
    """Exactly l of a sequence's n scored tokens are masked, every set of l alike, with l uniform over 1 .. n.

    For t with the relative mask rate a = (1 - alpha_t) / (1 - alpha_1), l = ceil(n a); the masked bound divides by
    `noise_rate`, l / n * (1 - alpha_1), in place of the probability 1 - alpha_t. Its mean over t is

        mean over l in 1 .. n, over sets of l, of n / l * sum over masked i of -log p(x_0^i | x_t),

    which is the mean over all orders of generation: the absorbing bound, if the network does not read t, and a bound
    like it if it does. Source: arXiv 2502.09992 (LLaDA), equations 5 and 6 and appendix A.

    Only a bound that integrates over t and divides by the mask rate holds for it (objective=masked), for at one t
    tokens are not masked independently. Evaluation masks independently, as for every corruption.
    """

    requires = Absorbing
    independent = False

    def corrupt(
        self, process: ForwardProcess, x_0: Tensor, t: Tensor, scored: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Mask the l scored tokens with the smallest of independent uniform draws, int64 [1, B, L]."""
        assert process.mask_id is not None
        draw = torch.rand(x_0.shape, dtype=torch.float64, device=x_0.device, generator=generator)
        rank = draw.masked_fill(~scored, 2.0).argsort(-1).argsort(-1)
        masked = scored & (rank < count(process, t[0], scored)[:, None])
        return x_0.masked_fill(masked, process.mask_id)[None]

    def noise_rate(self, process: ForwardProcess, t: Tensor, scored: Tensor) -> Tensor:
        """Return l / n times the mask rate at t = 1, float64 [B]."""
        return count(process, t, scored).double() / scored.sum(-1).clamp_min(1) * _last_rate(process, t)


def count(process: ForwardProcess, t: Tensor, scored: Tensor) -> Tensor:
    """Return l, int64 [B], at least 1 where anything is scored, for t [B] and scored [B, L]."""
    num = scored.sum(-1)
    return torch.ceil(num * (1.0 - process.alpha(t)) / _last_rate(process, t)).long().clamp_min(1).minimum(num)


def _last_rate(process: ForwardProcess, t: Tensor) -> Tensor:
    """Return 1 - alpha(1), float64 []."""
    return 1.0 - process.alpha(torch.ones((), dtype=torch.float64, device=t.device))
