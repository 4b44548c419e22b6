"""Entropy-bounded decoding: as many positions in a step as may be decided independently at a bounded cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from dlmkit.ranges import Range
from dlmkit.samplers.base import Step
from dlmkit.samplers.ordered import Ordered
from dlmkit.samplers.ranking import Ranking, entropies


@dataclass(frozen=True)
class EntropyBound(Ordered[None]):
    """The k first positions for the largest k with sum of their entropies less the largest of them <= `gamma`.

    That excess bounds what drawing the k tokens independently costs: the KL divergence from the data to the samples is
    at most the sum of the excess of all steps, if the network is exact. The number of steps follows from the text,
    whatever was requested. Source: arXiv 2505.24857 (EB-Sampler), equation 8.

    Attributes:
        gamma: at least 0, nats; 0 decides one position at a time, and others only if they are certain.
    """

    gamma: Annotated[float, Range("[0, 1000000]", "it is in nats for each step: try 0.1")] = 0.1

    keeps_distribution = False

    def commits(self, ranked: Ranking, step: Step, state: None) -> Tensor:
        """Return the first k positions."""
        sorted_entropies = ranked.by_rank(entropies(ranked).double())
        excess = sorted_entropies.cumsum(-1) - sorted_entropies.cummax(-1).values  # never falls with k
        return ranked.first((excess <= self.gamma).sum(-1).clamp_min(1))
