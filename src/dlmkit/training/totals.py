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

    Attributes:
        num_scored: scored tokens; a scalar tensor until it is reduced, which nothing waits for.
        num_positions: all tokens.
        loss: sum of the losses that are minimised, nats; a scalar tensor until it is reduced.
        grad_norm: norm of the gradient of this rank, before it is scaled; likewise.
    """

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self.num_scored: Tensor | float = 0.0
        self.num_positions = 0.0
        self.loss: Tensor | float = 0.0
        self.grad_norm: Tensor | float = 0.0
        self._parts = parts
        self._collected: dict[str, Tensor] = {}

    def add(self, output: StepOutput) -> None:
        """Add a micro-batch."""
        self.num_scored = self.num_scored + output.scored.sum()
        self.num_positions += output.scored.numel()
        for name, part in self._parts.items():
            sums = part.collect(output)
            self._collected[name] = self._collected[name] + sums if name in self._collected else sums

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> StepTotals:
        """Return the totals over all ranks; `reduce` maps a float64 vector to its sum over the ranks.

        All stays on the device until then, so that one transfer brings it to the CPU. The totals of `loss` and
        `grad_norm` are finite where those of every rank are.
        """
        sizes = [len(sums) for sums in self._collected.values()]
        device = torch.as_tensor(self.loss).device
        measured = [self.loss, self.grad_norm, self.num_scored, self.num_positions]
        scalars = [one.double() if isinstance(one, Tensor) else _filled(one, device) for one in measured]
        sums = [one.to(device) for one in self._collected.values() if len(one)]
        vector = reduce(torch.cat([torch.stack(scalars), *sums])).cpu()
        total = StepTotals(self._parts)
        total.loss, total.grad_norm, total.num_scored, total.num_positions = vector[:4].tolist()
        total._collected = dict(zip(self._collected, vector[4:].split(sizes), strict=True))
        return total

    def update_parts(self) -> None:
        """Call `update` of every part with its totals, [S]."""
        for name, sums in self._collected.items():
            self._parts[name].update(sums)


def _filled(value: float, device: torch.device) -> Tensor:
    """Return a number as a tensor that is made on the device: a copy would wait for it."""
    return torch.full((), value, dtype=torch.float64, device=device)
