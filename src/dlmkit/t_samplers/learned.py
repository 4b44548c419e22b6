"""Importance sampling of t, with a density that is learned from the training losses."""

from collections.abc import Mapping
from typing import Annotated

import torch
from torch import Tensor

from dlmkit.ranges import Range, checked
from dlmkit.t_samplers.base import SmallestTime, TimeSampler, rescale_to_eps, stratified_uniform
from dlmkit.types import StepOutput, TimeDraw


class Learned(TimeSampler):
    """Density proportional to the root mean square of a sequence's loss at t, constant on equal bins of [eps, 1].

    With density g, one draw's estimate f / g of the integral of f has the second moment E[f^2 / g], which is least at
    g ~ sqrt(E[f^2 | t]). Here f is the loss per scored token of a sequence (or of a block, where each has its own t)
    without the weight 1 / g. Strata of a smooth mean leave only E[Var[f | t] / g] of the variance, which is least at
    g ~ sqrt(Var[f | t]): that is `by_variance`, Neyman's allocation.

    The density is bounded below, the weights are exactly 1 / g and the draws are stratified through the inverse of the
    cumulative density, so that the mean is the integral whatever has been learned. Until every bin has had
    `warmup_draws` draws the density is uniform.

    Both concern the variance of the loss, which is not the variance of the gradient: for the masked bound under a
    linear schedule the first lowers it little and the second much (docs/architecture.md has the numbers).

    Source: arXiv 2102.09672 (Improved DDPM), section 3.3, which has a probability for each of T discrete times and
    keeps the last ten losses of each; not `by_variance`.

    Args:
        eps: smallest t, in [0, 0.5]; the integral over [0, eps] is left out of the training loss.
        num_bins: bins of the density, 1 to 65,536.
        uniform_share: share of the draws that stays uniform, in [1e-3, 1]: no weight is above its inverse.
        decay: of a bin's averages at each optimizer step that draws from it, in [0, 1).
        warmup_draws: draws that each bin must have had before the density is used, at least 1.
        by_variance: take the standard deviation of a bin's losses in place of their root mean square.

    Raises:
        ValueError: a value outside of its range.
    """

    @checked
    def __init__(
        self,
        eps: SmallestTime,
        num_bins: Annotated[int, Range("[1, 65536]", "give the number of bins, such as 32")],
        uniform_share: Annotated[float, Range("[1e-3, 1]", "weights are at most 1 / uniform_share, try 0.1")],
        decay: Annotated[float, Range("[0, 1)", "it is what a step leaves of the mean before, try 0.99")],
        warmup_draws: Annotated[int, Range("[1, 1000000000]", "a bin without draws has no mean, try 10")],
        by_variance: bool,
    ) -> None:
        self.eps = eps
        self.num_bins = num_bins
        self.uniform_share = uniform_share
        self.decay = decay
        self.warmup_draws = warmup_draws
        self.by_variance = by_variance
        self.drawn = torch.zeros(num_bins, dtype=torch.float64)  # total draws of each bin
        self.sums = torch.zeros(3, num_bins, dtype=torch.float64)  # decayed: draws, losses, squared losses

    @property
    def probabilities(self) -> Tensor:
        """Probability of each bin, float64 [num_bins], from t = eps up; each at least uniform_share / num_bins."""
        uniform = torch.full((self.num_bins,), 1.0 / self.num_bins, dtype=torch.float64)
        if self.drawn.min() < self.warmup_draws:
            return uniform
        count, loss, square = self.sums
        variance = (square / count - (loss / count) ** 2).clamp_min(0.0)
        root = (variance if self.by_variance else square / count).sqrt()
        total = root.sum()
        return uniform if total == 0 else (1.0 - self.uniform_share) * root / total + self.uniform_share * uniform

    def sample(self, num: int, generator: torch.Generator) -> TimeDraw:
        """Return stratified draws from the density, with weight = 1 / density."""
        probabilities = self.probabilities
        ends = probabilities.cumsum(0)
        u = 1.0 - stratified_uniform(num, generator)  # in (0, 1]
        bins = torch.searchsorted(ends, u).clamp_max(self.num_bins - 1)
        within = 1.0 - ((ends[bins] - u) / probabilities[bins]).clamp(0.0, 1.0)
        t, length = rescale_to_eps(1.0 - (bins + within) / self.num_bins, self.eps)
        return TimeDraw(t, length / (self.num_bins * probabilities[bins]))

    def collect(self, output: StepOutput) -> Tensor:
        """Return [3 * num_bins]: draws in each bin, sums of their losses per scored token, and of the squares."""
        t, weight = output.draw
        parts = (t.numel(), -1)
        num_scored = output.scored.reshape(parts).sum(-1)
        total = output.loss.double().reshape(parts).sum(-1)
        integrand = (total / (weight.flatten() * num_scored.clamp_min(1))).cpu()
        share = (t.flatten().cpu() - self.eps) / (1.0 - self.eps)
        bins = (torch.ceil(share * self.num_bins).long() - 1).clamp(0, self.num_bins - 1)
        drawn = (num_scored > 0).double().cpu()  # a sequence without scored tokens has no loss
        sums = torch.zeros(3, self.num_bins, dtype=torch.float64)
        return sums.index_add_(1, bins, torch.stack([drawn, integrand, integrand**2])).flatten()

    def update(self, totals: Tensor) -> None:
        """Average the step's sums into the bins that it drew from; a sum that overflowed is left out."""
        sums = totals.view(3, self.num_bins)
        fresh = (sums[0] > 0) & sums.isfinite().all(0)
        self.drawn = torch.where(fresh, self.drawn + sums[0], self.drawn)
        self.sums = torch.where(fresh, self.decay * self.sums + sums, self.sums)

    def state_dict(self) -> dict[str, Tensor]:
        """Return "drawn", the draws of each bin, [num_bins], and "sums", its decayed sums, [3, num_bins]; float64."""
        return {"drawn": self.drawn, "sums": self.sums}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore them.

        Raises:
            ValueError: `state` is empty (another t_sampler was trained with), or has another number of bins.
        """
        if "drawn" not in state:
            raise ValueError(
                "the checkpoint has no learned density of t: resume with the t_sampler that it was trained with"
            )
        if len(state["drawn"]) != self.num_bins:
            raise ValueError(
                f"t_sampler.num_bins {self.num_bins} is not the {len(state['drawn'])} of the checkpoint: set it to that"
            )
        self.drawn, self.sums = state["drawn"], state["sums"]
