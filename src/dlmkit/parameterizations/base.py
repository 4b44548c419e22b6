"""The interface of parameterizations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from dlmkit.processes.base import ForwardProcess


class Parameterization(ABC):
    """What the raw output of a network means: a posterior of the clean token, a score, the next token.

    An objective holds the one that it trains, a sampler the one that its step needs; the two must agree. Raw output is
    logits [N, V] with the mask token at -inf, as every :class:`dlmkit.types.Prediction` has it.
    """

    name: ClassVar[str]
    """As it stands in messages."""

    @abstractmethod
    def log_x0(self, logits: Tensor, x_t: Tensor, t: Tensor, process: ForwardProcess) -> Tensor:
        """Return log x_theta [N, V], the normalised prediction of the clean token that reverse steps plug in.

        It is the leave-one-out posterior p(x_0^i | x_t^{-i}), or, of a causal model, p(x^i | x^{<i}). Where the process
        leaves a token clean for sure (absorbing noise, not masked), it is certain of x_t instead.

        Args:
            logits: raw output, [N, V].
            x_t: noisy tokens there, int64 [N].
            t: float64 [N].
            process: the noise.
        """

    @abstractmethod
    def from_log_x0(self, log_x0: Tensor, x_t: Tensor, t: Tensor, process: ForwardProcess) -> Tensor:
        """Return the raw output [N, V] for log x_theta [N, V]: the inverse of the method `log_x0`.

        `x_t` is int64 [N], `t` float64 [N].
        """

    def log_marginal(self, logits: Tensor, x_t: Tensor, t: Tensor, process: ForwardProcess) -> Tensor:
        """Return the log of the predicted distribution of the noisy token, p_t(z^i | x_t^{-i}), [N, V].

        Arguments as in `log_x0`.
        """
        return process.marginal(self.log_x0(logits, x_t, t, process).exp(), t).log()

    def agrees_with(self, other: Parameterization, process: ForwardProcess) -> bool:
        """Return whether the two mean the same under `process`: whether they are of one type, unless overridden."""
        return type(self) is type(other)
