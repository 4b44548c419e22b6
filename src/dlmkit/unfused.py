"""A prediction whose losses are computed plainly: for predictions without a head of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from dlmkit.types import ClosedForm, WeightedNLL, WeightedValues


class WithoutFusing(ABC):
    """What a prediction offers, by plain autograd over its `logits` and `map_logits`."""

    @abstractmethod
    def logits(self, where: Tensor) -> Tensor:
        """Return logits [N, V] at `where`."""

    def map_logits(self, function: Callable[..., Tensor], where: Tensor, *arguments: Tensor) -> Tensor:
        """Return function(logits [N, V], *arguments [N])."""
        return function(self.logits(where), *arguments)

    def token_log_prob(self, tokens: Tensor, where: Tensor) -> Tensor:
        """Return log p(tokens) [N] at `where`."""
        return self.logits(where).log_softmax(-1).gather(-1, tokens[where][:, None])[:, 0]

    def weighted_nll(self, tokens: Tensor, where: Tensor, weight: Tensor) -> WeightedNLL:
        """Return -log p(tokens) [N] and its sum with `weight` [N]."""
        values = -self.token_log_prob(tokens, where)
        return WeightedNLL((values * weight).sum(), values)

    def weighted(self, form: ClosedForm, where: Tensor, weight: Tensor, *arguments: Tensor) -> WeightedValues:
        """Return form(logits [N, V], *arguments [N]), alone and times the weight."""
        values = self.map_logits(form, where, *arguments)
        return WeightedValues(values * weight.to(values.dtype), values.detach())
