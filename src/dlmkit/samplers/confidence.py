"""Confidence decoding: an equal number of positions in each step, the surest first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmkit.samplers.base import Step
from dlmkit.samplers.ordered import Ordered
from dlmkit.samplers.ranking import Ranking
from dlmkit.types import Canvas


@dataclass(frozen=True)
class Start:
    """What a text began with.

    Attributes:
        num_free: free positions of each row, int64 [B].
    """

    num_free: Tensor

    def select(self, rows: Tensor) -> Start:
        """Return the numbers of some rows, int64 [R]."""
        return Start(self.num_free[rows])


@dataclass(frozen=True)
class Confidence(Ordered[Start]):
    """After step k of T floor(n (T - k) / T) of a row's n free positions are undecided.

    With T = n steps or more one position is decided at a time; a step in which a row has none to decide costs it no
    pass of the network. Sources: arXiv 2202.04200 (MaskGIT), 2502.09992 (LLaDA, `score=drawn`), 2502.06768 (margin).
    """

    def init(self, canvas: Canvas) -> Start:
        """Return the number of free positions."""
        return Start(canvas.num_free)

    def num_steps(self, canvas: Canvas, requested: int) -> int:
        """Return what was requested: with more steps than free positions a row waits in some."""
        return requested

    def waits(self, where: Tensor, step: Step, state: Start) -> Tensor:
        """Return bool [B]: rows that are ahead of the schedule."""
        return self._due(where, step, state) <= 0

    def commits(self, ranked: Ranking, step: Step, state: Start) -> Tensor:
        """Return as many first positions as the schedule asks for."""
        return ranked.first(self._due(ranked.where, step, state))

    @staticmethod
    def _due(where: Tensor, step: Step, state: Start) -> Tensor:
        left = torch.div(state.num_free * (step.num_steps - step.index - 1), step.num_steps, rounding_mode="floor")
        return where.sum(-1) - left
