"""The LM head and predictions that run it only at the positions that a caller selects.

With 50k tokens the head, a [D, V] product, is the most expensive part of a small model. Objectives evaluate it at the
positions that they score (the masked ones, for absorbing noise), so [B, L, V] is never built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dlmkit.backbones.fused_closed_form import Layer, fused_closed_form, values_alone
from dlmkit.backbones.fused_log_prob import CHUNK_ELEMENTS, fused_log_prob
from dlmkit.backbones.products import product_dtype
from dlmkit.backbones.weighted_nll import weighted_nll
from dlmkit.types import ClosedForm, WeightedNLL, WeightedValues


@dataclass(frozen=True)
class Head:
    """An output head: logits = cap * tanh(scale * (hidden @ weight.T + bias) / cap).

    Attributes:
        weight: [V, D], often tied to the input embedding.
        bias: [V] or ``None``.
        scale: factor on the logits (Granite divides by ``logits_scaling``, Cohere multiplies by ``logit_scale``).
        softcap: the bound of Gemma 2's tanh, or ``None``.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return logits [N, V] in float32 for hidden [N, D]."""
        logits = F.linear(
            hidden, self.weight.to(hidden.dtype), None if self.bias is None else self.bias.to(hidden.dtype)
        )
        return self.transform(logits.float())

    def transform(self, logits: Tensor) -> Tensor:
        """Apply scale and soft cap, in place, to raw logits."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    @property
    def is_linear(self) -> bool:
        """Whether the fused log-probability applies (no soft cap)."""
        return self.softcap is None


class HeadPrediction:
    """A network's prediction as final hidden states and the LM head, a :class:`dlmkit.types.Prediction`.

    Args:
        hidden: [B, L, D]; row i predicts token i, whatever alignment the network has inside.
        head: the output head.
        mask_id: id whose logit is -inf in every prediction (a clean token is never the mask), or ``None``.
    """

    def __init__(self, hidden: Tensor, head: Head, mask_id: int | None) -> None:
        self.hidden = hidden
        self.head = head
        self.mask_id = mask_id

    @property
    def vocab_size(self) -> int:
        """V, mask token included."""
        return self.head.weight.shape[0]

    def logits(self, where: Tensor) -> Tensor:
        """Return float32 logits [N, V] at the True entries of `where` (bool [B, L]), the mask token at -inf."""
        return self._logits(self.hidden[where])

    def token_log_prob(self, tokens: Tensor, where: Tensor) -> Tensor:
        """Return log p(tokens), float32 [N], at the True entries of `where`; the head runs there alone, in pieces.

        Args:
            tokens: int64 [B, L].
            where: bool [B, L].
        """
        targets, head = tokens[where], self.head
        if head.is_linear:
            return fused_log_prob(self.hidden[where], head.weight, head.bias, targets, self.mask_id, head.scale)

        def pick(logits: Tensor, target: Tensor) -> Tensor:
            return logits.log_softmax(-1).gather(-1, target[:, None])[:, 0]

        return self.map_logits(pick, where, targets)

    def weighted_nll(self, tokens: Tensor, where: Tensor, weight: Tensor) -> WeightedNLL:
        """Return -log p(tokens) at the True entries of `where` and its sum with `weight`, whose gradient comes with it.

        Args:
            tokens: int64 [B, L].
            where: bool [B, L].
            weight: [N], the factor of each value in the sum.
        """
        head = self.head
        if head.is_linear and torch.is_grad_enabled():
            hidden, targets = self.hidden[where], tokens[where]
            return weighted_nll(hidden, head.weight, head.bias, targets, weight, self.mask_id, head.scale)
        values = -self.token_log_prob(tokens, where)
        return WeightedNLL((values * weight.to(values.dtype)).sum(), values)

    def map_logits(self, function: Callable[..., Tensor], where: Tensor, *arguments: Tensor) -> Tensor:
        """Return function(logits [n, V], *arguments [n]) -> [n], over the True entries of `where`, in chunks.

        With gradients on, each chunk is recomputed in the backward pass, so memory stays at one chunk.
        """
        hidden = self.hidden[where]
        rows = chunk_rows(self.vocab_size)
        if hidden.shape[0] <= rows:
            return function(self._logits(hidden), *arguments)

        def one_chunk(hidden: Tensor, *arguments: Tensor) -> Tensor:
            return function(self._logits(hidden), *arguments)

        pieces = zip(hidden.split(rows), *(argument.split(rows) for argument in arguments), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([one_chunk(*piece) for piece in pieces])
        return torch.cat([checkpoint(one_chunk, *piece, use_reentrant=False) for piece in pieces])

    def weighted(self, form: ClosedForm, where: Tensor, weight: Tensor, *arguments: Tensor) -> WeightedValues:
        """Return form(logits [n, V], *arguments [n]), [N], at the True entries of `where`, alone and times the weight.

        With gradients on, they are computed in the forward pass, see :mod:`dlmkit.backbones.fused_closed_form`.
        """
        hidden, head = self.hidden[where], self.head
        layer = Layer(head.weight, head.bias, head.scale, head.softcap, self.mask_id, product_dtype(hidden))
        if torch.is_grad_enabled():
            return fused_closed_form(form, hidden, layer, weight, arguments)
        values = values_alone(form, hidden, layer, arguments)
        return WeightedValues(values * weight.to(layer.wide), values)

    def in_float32(self) -> HeadPrediction:
        """Return the same prediction from float32 hidden states, with which the head's weights are read as float32."""
        return HeadPrediction(self.hidden.float(), self.head, self.mask_id)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.head(hidden)
        if self.mask_id is None:
            return logits
        forbidden = torch.zeros(self.vocab_size, dtype=torch.bool, device=logits.device)
        forbidden[self.mask_id] = True
        return logits.masked_fill(forbidden, float("-inf"))


def chunk_rows(vocab_size: int) -> int:
    """Return how many rows of logits are in memory at a time."""
    return max(64, CHUNK_ELEMENTS // vocab_size)
