"""Threshold decoding: in each step all positions of which the network is sure enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from dlmkit.ranges import Range
from dlmkit.samplers.base import Step
from dlmkit.samplers.ordered import Ordered
from dlmkit.samplers.ranking import Ranking


@dataclass(frozen=True)
class Threshold(Ordered[None]):
    """All positions with a score above `threshold`, and the surest one in any case.

    The number of steps follows from the text, whatever was requested. Source: arXiv 2505.22618 (Fast-dLLM), section
    3.3.

    Attributes:
        threshold: in [0, 1]; 1 decides one position at a time.
    """

    threshold: Annotated[float, Range("[0, 1]", "it is compared with a probability: try 0.9")] = 0.9

    keeps_distribution = False

    def commits(self, ranked: Ranking, step: Step, state: None) -> Tensor:
        """Return the positions above the threshold, and the first."""
        return ((ranked.score > self.threshold) | (ranked.rank == 0)) & ranked.where
