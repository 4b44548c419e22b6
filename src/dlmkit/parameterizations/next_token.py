"""A causal network predicts the next token."""

from __future__ import annotations

from torch import Tensor

from dlmkit.parameterizations.base import Parameterization
from dlmkit.processes.base import ForwardProcess


class NextToken(Parameterization):
    """softmax(logits) = p(x^i | x^{<i}) of clean tokens, the autoregressive factors."""

    name = "next"

    def log_x0(self, logits: Tensor, x_t: Tensor, t: Tensor, process: ForwardProcess) -> Tensor:
        """Return the log-softmax."""
        return logits.log_softmax(-1)

    def from_log_x0(self, log_x0: Tensor, x_t: Tensor, t: Tensor, process: ForwardProcess) -> Tensor:
        """Return `log_x0` itself."""
        return log_x0
