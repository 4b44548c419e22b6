"""Factor decoding: the more positions in a step, the surer the network must be of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from dlmkit.ranges import Range
from dlmkit.samplers.base import Step
from dlmkit.samplers.ordered import Ordered
from dlmkit.samplers.ranking import Ranking


@dataclass(frozen=True)
class Factor(Ordered[None]):
    """The k first positions for the largest k with (k + 1) (1 - score of the k-th) < `factor`, and one in any case.

    The number of steps follows from the text, whatever was requested. Source: arXiv 2505.22618 (Fast-dLLM), section
    3.3, where k tokens with such confidences have the mode of their joint distribution if factor is 1.

    Attributes:
        factor: at least 0; 0 decides one position at a time.
    """

    factor: Annotated[float, Range("[0, 1000000]", "it bounds (k + 1) (1 - confidence): try 1")] = 1.0

    keeps_distribution = False

    def commits(self, ranked: Ranking, step: Step, state: None) -> Tensor:
        """Return the first k positions."""
        fits = (ranked.rank + 2) * (1.0 - ranked.score) < self.factor
        most = ((ranked.rank + 1) * (fits & ranked.where)).amax(-1)
        return ranked.first(most.clamp_min(1))
