"""Absorbing noise drawn in complementary pairs: what one copy of a block shows, the other masks."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from dlmkit.processes.absorbing import Absorbing
from dlmkit.schedules.base import Schedule


class AbsorbingComplementary(Absorbing):
    """A block is trained on twice: at t with masks M, and at the t' with 1 - alpha_t' = alpha_t, all but M masked.

    So every scored token is predicted exactly once over a pair. Change of variables gives the second copy the weight
    weight * alpha'_t / alpha'_t', with which its mean is the same integral over time; the loss is the mean of the two,
    an antithetic pair. Sources: arXiv 2505.16839 (LaViDa, complementary masking); arXiv 2511.18159 (MIRROR, negatively
    correlated masks against the variance that the masks make).

    The ends. Shares of masks reach 1 - alpha_1 alone, so that a t with alpha_t < 1 - alpha_0 or 1 - alpha_t < alpha_1
    has no t'. And where one share is s, a masked token of that copy weighs as 1 / s: a time sampler that leaves out
    t < eps bounds that, but the complement of t near 1 would come back to it. Therefore a t for which either share
    would be below s_min = max(min_share, alpha_1, 1 - alpha_0) is not paired: both copies are at t, with their weight
    unchanged, and masks from u and from 1 - u for one uniform draw u per token. The t that are paired are mapped onto
    themselves and the others stay, so that each copy alone integrates over [0, 1] exactly. It does over a sampler's
    [eps, 1] too if s_min is at least 1 - alpha_eps; otherwise the second copy leaves out as much near 1 instead of 0.

    It is a way of drawing the noise of training, not another chain: `corrupt`, evaluation and reverse steps are those
    of `absorbing`, and the first copy is what `absorbing` draws.

    Args:
        schedule: alpha(t).
        vocab_size: V, mask token included.
        mask_id: id of the mask token; required.
        min_share: smallest share of masks in a pair, in (0, 0.5).
    """

    num_copies = 2

    def __init__(self, schedule: Schedule, vocab_size: int, mask_id: int | None, min_share: float) -> None:
        super().__init__(schedule, vocab_size, mask_id)
        if not 0.0 < min_share < 0.5:
            raise ValueError(f"min_share {min_share} is outside (0, 0.5): it is the least share of masks, try 2e-3")
        self.min_share = min_share

    @cached_property
    def least_share(self) -> float:
        """s_min, the smallest share of masks that either copy of a pair has."""
        clean, noise = self.schedule.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        return max(self.min_share, 1.0 - clean, noise)

    def copies(self, t: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return ((t, t'), (weight, weight')), both [2, ...]."""
        paired = self._paired(t)
        other = torch.where(paired, self.schedule.inverse(1.0 - self.schedule.alpha(t)), t)
        factor = self.schedule.derivative(t) / self.schedule.derivative(other)
        return torch.stack([t, other]), torch.stack([weight, torch.where(paired, weight * factor, weight)])

    def corrupt_copies(self, x_0: Tensor, t: Tensor, scored: Tensor, generator: torch.Generator) -> Tensor:
        """Mask each scored token in one copy, and show it in the other."""
        draw = torch.rand(x_0.shape, dtype=torch.float64, device=x_0.device, generator=generator)
        return torch.where(self.masks(draw, t) & scored, self.mask_id, x_0)

    def masks(self, draw: Tensor, t: Tensor) -> Tensor:
        """Return where the two copies are masked, bool [2, B, L], from uniform draws [B, L] and times [2, B]."""
        alpha = self.schedule.alpha(t)
        # alpha_t and 1 - alpha_t' are one number up to rounding, and no token may fall between them.
        below = torch.where(self._paired(t[0]), alpha[0], 1.0 - alpha[1])
        return torch.stack([draw >= alpha[0, :, None], draw < below[:, None]])

    def _paired(self, t: Tensor) -> Tensor:
        """Return bool, like t: whether there is a t' and neither share is too small."""
        alpha = self.schedule.alpha(t)
        return (alpha >= self.least_share) & (alpha <= 1.0 - self.least_share)
