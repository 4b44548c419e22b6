"""Predictions without a network: given tables of logits, and the same in another parameterization.

Shapes: B sequences, L positions, V vocabulary, N selected positions.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dlmkit.parameterizations.base import Parameterization
from dlmkit.parameterizations.next_token import NextToken
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.base import ForwardProcess
from dlmkit.tensors import at_positions
from dlmkit.types import Prediction
from dlmkit.unfused import WithoutFusing


class TablePrediction(WithoutFusing):
    """A prediction with given logits [B, L, V]: no network, no rounding to float32.

    Args:
        table: logits [B, L, V]; -inf at the mask token, as every prediction has it.
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def logits(self, where: Tensor) -> Tensor:
        """Return the table's rows [N, V] at `where`."""
        return self.table[where]

    def in_float32(self) -> TablePrediction:
        """Return itself: the table is what it is."""
        return self


class Reparameterized(WithoutFusing):
    """A prediction of x_0 as the raw output in another parameterization; chunked and differentiable as the given one.

    Args:
        below: prediction of x_0 (leave-one-out).
        parameterization: of the result.
        process: the noise.
        x_t: int64 [B, L].
        t: float64 [B].
    """

    def __init__(
        self, below: Prediction, parameterization: Parameterization, process: ForwardProcess, x_t: Tensor, t: Tensor
    ) -> None:
        self.below, self.parameterization, self.process, self.x_t, self.t = below, parameterization, process, x_t, t

    def logits(self, where: Tensor) -> Tensor:
        """Return raw output [N, V] at `where`."""
        return self._raw(self.below.logits(where), *self._positions(where))

    def map_logits(self, function: Callable[..., Tensor], where: Tensor, *arguments: Tensor) -> Tensor:
        """Return function(raw output [N, V], *arguments [N])."""

        def through(logits: Tensor, z: Tensor, t: Tensor, *arguments: Tensor) -> Tensor:
            return function(self._raw(logits, z, t), *arguments)

        return self.below.map_logits(through, where, *self._positions(where), *arguments)

    def in_float32(self) -> Reparameterized:
        """Return the same of the given prediction in float32."""
        return Reparameterized(self.below.in_float32(), self.parameterization, self.process, self.x_t, self.t)

    def _positions(self, where: Tensor) -> tuple[Tensor, Tensor]:
        return self.x_t[where], at_positions(self.t, where)

    def _raw(self, logits: Tensor, z: Tensor, t: Tensor) -> Tensor:
        log_x0 = X0LeaveOneOut().log_x0(logits, z, t, self.process)
        return self.parameterization.from_log_x0(log_x0, z, t, self.process)


def read_as(
    parameterization: Parameterization, below: Prediction, process: ForwardProcess, x_t: Tensor, t: Tensor
) -> Prediction:
    """Return a prediction of x_0 as a network of the parameterization would give it."""
    if isinstance(parameterization, X0LeaveOneOut | NextToken):  # the same raw output
        return below
    return Reparameterized(below, parameterization, process, x_t, t)
