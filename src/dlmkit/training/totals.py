"""What is summed over the micro-batches and ranks of one optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dlmkit.parts import Part
from dlmkit.types import StepOutput


class StepTotals:
    """Sums of one optimizer step: scored tokens, positions, and what each part collects.

    Args:
        parts: name -> part, in the same order on every rank.
    """

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self.num_scored = 0.0
        self.num_positions = 0.0
        self._parts = parts
        self._collected: dict[str, Tensor] = {}

    def add(self, output: StepOutput) -> None:
        """Add a micro-batch."""
        self.num_scored += int(output.scored.sum())
        self.num_positions += output.scored.numel()
        for name, part in self._parts.items():
            sums = part.collect(output)
            self._collected[name] = self._collected[name] + sums if name in self._collected else sums

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> StepTotals:
        """Return the totals over all ranks; `reduce` maps a float64 vector to its sum over the ranks."""
        counts = torch.tensor([self.num_scored, self.num_positions], dtype=torch.float64)
        sizes = [len(sums) for sums in self._collected.values()]
        vector = reduce(torch.cat([counts, *self._collected.values()])).cpu()
        total = StepTotals(self._parts)
        total.num_scored, total.num_positions = vector[:2].tolist()
        total._collected = dict(zip(self._collected, vector[2:].split(sizes), strict=True))
        return total

    def update_parts(self) -> None:
        """Call `update` of every part with its totals, [S]."""
        for name, sums in self._collected.items():
            self._parts[name].update(sums)
