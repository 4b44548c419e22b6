"""Numbers from logits with their weighted sums; :mod:`dlmkit.types` has them too.

Shapes: N positions, n of them at a time, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor


class WeightedNLL(NamedTuple):
    """Negative log-probabilities of tokens and their weighted sum, nats; both are differentiable.

    Attributes:
        total: scalar, the sum of weight * values.
        values: float32 [N].
    """

    total: Tensor
    values: Tensor


class ClosedForm(ABC):
    """A number from each row of logits, with its gradient in closed form; rows are treated apart."""

    @abstractmethod
    def __call__(self, logits: Tensor, *arguments: Tensor) -> Tensor:
        """Return the values [n] for logits [n, V], the mask token at -inf, and arguments [n]; differentiable."""

    @abstractmethod
    def to_gradient_(self, logits: Tensor, *arguments: Tensor) -> Tensor:
        """Return the same values [n], and turn each row of the logits, in place, into the gradient of its value.

        The gradient of the mask's logit is zero. Called where nothing is recorded.
        """


class WeightedValues(NamedTuple):
    """Values of a closed form at N positions.

    Attributes:
        loss: weight * value, [N], differentiable.
        value: [N], detached.
    """

    loss: Tensor
    value: Tensor
