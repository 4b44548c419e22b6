"""Complementary pairs: the tokens that one copy of a sequence masks are those that the other leaves clean."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from dlmkit.corruption.base import Corruption
from dlmkit.processes.absorbing import Absorbing
from dlmkit.processes.base import ForwardProcess
from dlmkit.ranges import Range, checked
from dlmkit.types import TimeDraw


class Complementary(Corruption):
    """A sequence is read twice: at t with masks M, and at the t' with 1 - alpha_t' = alpha_t, all but M masked.

    Every scored token is predicted exactly once over such an antithetic pair. Change of variables gives the second copy
    the weight weight * alpha'_t / alpha'_t', with which its mean is the same integral over time; the loss is the mean
    of the two. Sources: arXiv 2505.16839 (LaViDa, complementary masking); arXiv 2511.18159 (MIRROR, negatively
    correlated masks against the variance that masks make).

    Not every t is paired. Mask rates lie in [1 - alpha_0, 1 - alpha_1], so that a t with alpha_t < 1 - alpha_0 or
    1 - alpha_t < alpha_1 has no t'. A masked token has weight 1 / (mask rate): a time sampler that leaves out t < eps
    bounds that, but the complement of a t near 1 would be near 0 again. Therefore a t for which either rate would be
    below s_min = max(min_share, alpha_1, 1 - alpha_0) is not paired: both copies are at t, with their weight unchanged,
    and masks from u and from 1 - u for one uniform draw u per token. Paired times are mapped onto themselves and the
    others stay, so that each copy alone integrates over [0, 1] exactly. Over a sampler's [eps, 1] it does if s_min is
    at least 1 - alpha_eps; otherwise the second copy leaves out as much near 1 instead of 0.

    The first copy is distributed as independent noise.

    Args:
        min_share: smallest mask rate in a pair, in (0, 0.5).

    Raises:
        ValueError: `min_share` is outside of its range.
    """

    requires = Absorbing
    num_copies = 2

    @checked
    def __init__(
        self, min_share: Annotated[float, Range("(0, 0.5)", "it is the least share of masks, try 2e-3")]
    ) -> None:
        self.min_share = min_share

    def times(self, process: ForwardProcess, draw: TimeDraw) -> TimeDraw:
        """Return (t, t') and their weights, both [2, ...]."""
        schedule = absorbing(process).schedule
        t, weight = draw
        paired = self.is_paired(process, t)
        other = torch.where(paired, schedule.inverse(1.0 - schedule.alpha(t)), t)
        factor = schedule.derivative(t) / schedule.derivative(other)
        return TimeDraw(torch.stack([t, other]), torch.stack([weight, torch.where(paired, weight * factor, weight)]))

    def corrupt(
        self, process: ForwardProcess, x_0: Tensor, t: Tensor, scored: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Mask each scored token in one copy and leave it clean in the other, int64 [2, B, L]."""
        draw = torch.rand(x_0.shape, dtype=torch.float64, device=x_0.device, generator=generator)
        return torch.where(self.masks(process, draw, t) & scored, absorbing(process).mask_id, x_0)

    def masks(self, process: ForwardProcess, draw: Tensor, t: Tensor) -> Tensor:
        """Return where the two copies are masked, bool [2, B, L], from uniform draws [B, L] and times [2, B]."""
        alpha = process.alpha(t)
        # alpha_t and 1 - alpha_t' are equal up to rounding, and no token may fall between them.
        below = torch.where(self.is_paired(process, t[0]), alpha[0], 1.0 - alpha[1])
        return torch.stack([draw >= alpha[0, :, None], draw < below[:, None]])

    def is_paired(self, process: ForwardProcess, t: Tensor) -> Tensor:
        """Return bool, like t: whether there is a t' and neither mask rate is too small."""
        alpha, least = process.alpha(t), self.least_share(process)
        return (alpha >= least) & (alpha <= 1.0 - least)

    def least_share(self, process: ForwardProcess) -> float:
        """Return s_min, the smallest mask rate of either copy of a pair."""
        clean, noise = process.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        return max(self.min_share, 1.0 - clean, noise)


def absorbing(process: ForwardProcess) -> Absorbing:
    """Return the process as the absorbing one that compatibility has checked it to be."""
    assert isinstance(process, Absorbing)
    return process
