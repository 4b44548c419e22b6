"""Absorbing noise with the number of masks fixed by t: one source of variance less in the masked bound."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmkit.processes.absorbing import Absorbing


class AbsorbingFixedCount(Absorbing):
    """Exactly l of a sequence's n scored tokens are masked, every set of l alike, with l uniform over 1 .. n.

    For t with the noised share a = (1 - alpha_t) / (1 - alpha_1), l = ceil(n a); the masked bound is then weighted by
    the share l / n that is masked in fact, in place of the probability. Its mean over t is

        mean over l in 1 .. n, over sets of l, of n / l * sum over masked i of -log p(x_0^i | x_t),

    which is the mean over all orders of generation, whatever the schedule and with nothing left out at alpha_1 > 0: the
    absorbing bound, if the network does not read t, and a bound like it if it does. Source: arXiv 2502.09992 (LLaDA),
    equations 5 and 6 and appendix A.

    It is a way of drawing the same bound's noise, not another chain: reverse steps are those of `absorbing`. Only a
    bound that integrates over t holds for it (objective=masked), for at one t tokens are not masked independently.
    """

    independent = False

    def corrupt(self, x_0: Tensor, t: Tensor, scored: Tensor, generator: torch.Generator) -> Tensor:
        """Mask the l scored tokens with the smallest of independent uniform draws."""
        draw = torch.rand(x_0.shape, dtype=torch.float64, device=x_0.device, generator=generator)
        rank = draw.masked_fill(~scored, 2.0).argsort(-1).argsort(-1)
        return x_0.masked_fill(scored & (rank < self._count(t, scored)[:, None]), self.mask_id)

    def noised_share(self, t: Tensor, scored: Tensor) -> Tensor:
        """Return l / n times the share that is noisy at t = 1, float64 [B]."""
        return self._count(t, scored).double() / scored.sum(-1).clamp_min(1) * self._end(t)

    @property
    def left_out(self) -> tuple[float, float]:
        """Nothing: every count of masks from 1 to n is drawn."""
        return 0.0, 0.0

    def _count(self, t: Tensor, scored: Tensor) -> Tensor:
        """Return l, int64 [B], at least 1."""
        num = scored.sum(-1)
        return torch.ceil(num * (1.0 - self.schedule.alpha(t)) / self._end(t)).long().clamp_min(1).minimum(num)

    def _end(self, t: Tensor) -> Tensor:
        """Return 1 - alpha(1), float64 []."""
        return 1.0 - self.schedule.alpha(torch.ones((), dtype=torch.float64, device=t.device))
