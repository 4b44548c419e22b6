"""What the output head holds in a training step. It never stores [N, V]; its sizes are those of backbones/.

Shapes: N positions at which the head runs, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dlmkit.backbones import fused_closed_form, weighted_nll
from dlmkit.backbones.head import chunk_rows
from dlmkit.objectives.autoregressive import Autoregressive
from dlmkit.objectives.base import Objective
from dlmkit.objectives.block import BlockElbo
from dlmkit.objectives.elbo import GenericElbo
from dlmkit.objectives.hybrid import HybridElbo
from dlmkit.objectives.masked import MaskedElbo
from dlmkit.objectives.score_entropy import ScoreEntropy
from dlmkit.objectives.uniform import UniformElbo

Way = Literal["fused", "closed", "chunked", "whole"]
"""How an objective runs the head: fused with its gradient in the forward pass (`weighted_nll`), a closed form likewise
(`weighted`), any function on chunks of logits (`map_logits`), or on all logits at once."""

CHUNK_COPIES = 6
"""[n, V] float32 tensors that a function of a chunk of logits and its gradient hold at a time."""

WHOLE_COPIES = 10
"""The same of the generic bound, whose arithmetic is float64."""


@dataclass(frozen=True)
class HeadBuffers:
    """Bytes of the head beside the hidden states [N, D] of its positions, their gradients, and those of its weight.

    Attributes:
        forward: of buffers, for the length of the forward pass.
        backward: of buffers, for the length of the backward pass.
    """

    forward: int
    backward: int


def way_of(objective: Objective[Any], linear: bool) -> Way:
    """Return how an objective runs the head; `linear`: whether the head has no soft cap."""
    inner = objective.within if isinstance(objective, BlockElbo) else objective
    if isinstance(inner, GenericElbo):
        return "whole"
    if isinstance(inner, UniformElbo | HybridElbo | ScoreEntropy):
        return "closed"
    return "fused" if linear and isinstance(inner, MaskedElbo | Autoregressive) else "chunked"


def head_buffer_bytes(num: int, vocab_size: int, width: int, way: Way, device_type: str, low: bool) -> HeadBuffers:
    """Return the head's buffers, from the constants of backbones/.

    Args:
        num: N.
        vocab_size: V.
        width: D.
        way: how the objective runs it.
        device_type: "cpu" or "cuda".
        low: whether products are in 16 bits (autocast) and sums in 32.
    """
    if way in ("chunked", "whole"):
        rows = min(chunk_rows(vocab_size), num) if way == "chunked" else num
        working = rows * vocab_size * 4 * (CHUNK_COPIES if way == "chunked" else WHOLE_COPIES)
        return HeadBuffers(working, working)
    product_rows, tile_rows = _rows(way, vocab_size, device_type, low)
    tables = 2 * vocab_size * width * 2 if low else 0  # the table and a product of its shape, in 16 bits
    product, tile = (min(num, rows) * vocab_size for rows in (product_rows, tile_rows))
    return HeadBuffers(product * (2 if low else 4) + tile * 4 + tables, 0)


def _rows(way: Way, vocab_size: int, device_type: str, low: bool) -> tuple[int, int]:
    """Return how many rows of logits one product makes, and how many are worked on in float32 at a time."""
    if way == "closed":
        dtype = torch.bfloat16 if low else torch.float32
        product = fused_closed_form.product_rows(vocab_size, device_type, dtype)
        return product, fused_closed_form.tile_rows(vocab_size, device_type)
    tile = weighted_nll.tile_rows(vocab_size) if device_type == "cpu" else 1
    return weighted_nll.product_rows(vocab_size, device_type), tile


class HeadStandIn(torch.autograd.Function):
    """Keeps the tensors that the head keeps, and gives the gradients that it gives; it has no buffers."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, way: Way, done: Callable[[], None]) -> Tensor:
        """Return values [N] for hidden [N, D] and weight [V, D]; `done` is called at the end of the backward pass."""
        ctx.made = _gradients(ctx, hidden, weight) if way in ("fused", "closed") else None
        ctx.save_for_backward(hidden, weight)
        ctx.done = done
        return torch.empty(hidden.shape[0], device=hidden.device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of hidden and weight."""
        hidden, weight = ctx.saved_tensors
        made, ctx.made = ctx.made, None
        if made is None:
            made = _gradients(ctx, hidden, weight)
        ctx.done()
        return *made, None, None


def _gradients(ctx: Any, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    return torch.empty_like(hidden), torch.empty_like(weight) if ctx.needs_input_grad[1] else None
