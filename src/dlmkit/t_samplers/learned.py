"""Importance sampling of t, with a density that is learned from the losses of the training."""

import torch
from torch import Tensor

from dlmkit.t_samplers.base import TimeSampler, check_eps, strata, stretch


class Learned(TimeSampler):
    """Density proportional to the root mean square of a sequence's loss at t, constant on equal bins of [eps, 1].

    With density g, one draw's estimate f / g of the integral of f has the second moment E[f^2 / g], which is least at
    g ~ sqrt(E[f^2 | t]). Here f is the loss per scored token of a sequence (or of a block, where each has its own t)
    without the weight 1 / g. Strata of a smooth mean leave only E[Var[f | t] / g] of the variance, which is least at
    g ~ sqrt(Var[f | t]): that is `centred`, Neyman's allocation.

    The density is bounded below, the weights are exactly 1 / g and the draws are stratified through the inverse of the
    cumulative density, so that the mean is the integral whatever has been learned. Until every bin has had
    `warmup_draws` draws the density is uniform.

    Both are about the variance of the loss, of which the gradient's is another matter: for the masked bound under a
    linear schedule the first lowers it little and the second much (docs/architecture.md has the numbers).

    Source: arXiv 2102.09672 (Improved DDPM), section 3.3, which has a probability for each of T discrete times and
    keeps the last ten losses of each; not `centred`.

    Args:
        eps: smallest t; the integral over [0, eps] is left out of the training loss.
        num_bins: bins of the density, at least 1.
        floor: share of the draws that stays uniform, in (0, 1]: no weight is above 1 / floor.
        decay: of a bin's averages at each optimizer step that draws from it, in [0, 1).
        warmup_draws: draws that each bin must have had before the density is used, at least 1.
        centred: take the standard deviation of a bin's losses in place of their root mean square.

    Raises:
        ValueError: a value outside of its range.
    """

    def __init__(self, eps: float, num_bins: int, floor: float, decay: float, warmup_draws: int, centred: bool) -> None:
        check_eps(eps)
        if num_bins < 1:
            raise ValueError(f"num_bins {num_bins} is below 1: give the number of bins, such as 32")
        if not 0.0 < floor <= 1.0:
            raise ValueError(f"floor {floor} is outside (0, 1]: weights are at most 1 / floor, try 0.1")
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay {decay} is outside [0, 1): it is what a step leaves of the mean before, try 0.99")
        if warmup_draws < 1:
            raise ValueError(f"warmup_draws {warmup_draws} is below 1: a bin without draws has no mean, try 10")
        self.eps = eps
        self.num_bins = num_bins
        self.floor = floor
        self.decay = decay
        self.warmup_draws = warmup_draws
        self.centred = centred
        self.drawn = torch.zeros(num_bins, dtype=torch.float64)  # in all
        self.sums = torch.zeros(3, num_bins, dtype=torch.float64)  # averaged: draws, losses, squared losses

    @property
    def probabilities(self) -> Tensor:
        """Probability of each bin, float64 [num_bins], from t = eps up; each at least floor / num_bins."""
        uniform = torch.full((self.num_bins,), 1.0 / self.num_bins, dtype=torch.float64)
        if self.drawn.min() < self.warmup_draws:
            return uniform
        count, loss, square = self.sums
        variance = (square / count - (loss / count) ** 2).clamp_min(0.0)
        root = (variance if self.centred else square / count).sqrt()
        total = root.sum()
        return uniform if total == 0 else (1.0 - self.floor) * root / total + self.floor * uniform

    def sample(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return stratified draws from the density, with weight = 1 / density."""
        probabilities = self.probabilities
        ends = probabilities.cumsum(0)
        u = 1.0 - strata(num, generator)  # in (0, 1]
        bins = torch.searchsorted(ends, u).clamp_max(self.num_bins - 1)
        within = 1.0 - ((ends[bins] - u) / probabilities[bins]).clamp(0.0, 1.0)
        t, length = stretch(1.0 - (bins + within) / self.num_bins, self.eps)
        return t, length / (self.num_bins * probabilities[bins])

    def statistics(self, t: Tensor, weight: Tensor, loss: Tensor, scored: Tensor) -> Tensor:
        """Return [3 * num_bins]: draws in each bin, sums of their losses per scored token, and of the squares."""
        parts = (t.numel(), -1)
        num_scored = scored.reshape(parts).sum(-1)
        total = loss.detach().double().reshape(parts).sum(-1)
        integrand = (total / (weight.flatten() * num_scored.clamp_min(1))).cpu()
        share = (t.flatten().cpu() - self.eps) / (1.0 - self.eps)
        bins = (torch.ceil(share * self.num_bins).long() - 1).clamp(0, self.num_bins - 1)
        seen = (num_scored > 0).double().cpu()  # what has no scored token has no loss either
        sums = torch.zeros(3, self.num_bins, dtype=torch.float64)
        return sums.index_add_(1, bins, torch.stack([seen, integrand, integrand**2])).flatten()

    def observe(self, statistics: Tensor) -> None:
        """Average what the step has seen into the bins that it drew from; a sum that overflowed is left out."""
        sums = statistics.view(3, self.num_bins)
        fresh = (sums[0] > 0) & sums.isfinite().all(0)
        self.drawn = torch.where(fresh, self.drawn + sums[0], self.drawn)
        self.sums = torch.where(fresh, self.decay * self.sums + sums, self.sums)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the draws and the averages of the bins."""
        return {"drawn": self.drawn, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put them back.

        Raises:
            ValueError: there are none, or they are of another number of bins.
        """
        if "drawn" not in state:
            raise ValueError("the checkpoint has no learned density of t: go on with the t_sampler that it was made by")
        if len(state["drawn"]) != self.num_bins:
            raise ValueError(
                f"t_sampler.num_bins {self.num_bins} is not the {len(state['drawn'])} of the checkpoint: set it to that"
            )
        self.drawn, self.sums = state["drawn"], state["sums"]
