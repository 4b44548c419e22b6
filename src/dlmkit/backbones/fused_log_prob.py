"""The log-probability of chosen tokens under a linear head, fused with its gradient: [N, V] is never stored.

Shapes: N positions, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dlmkit.backbones.products import product_dtype, product_into

CHUNK_ELEMENTS = 2**24
"""Logits in memory at a time, in rows of V (64 MiB in float32), where any function of them is computed."""

TILE_ELEMENTS = {"cpu": 2**21, "cuda": 2**26}
"""Logits that `token_log_prob` holds at a time: on a CPU what stays in its cache, on a GPU what keeps it busy."""


def fused_log_prob(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, mask_id: int | None, scale: float
) -> Tensor:
    """Return log softmax(scale * (hidden @ weight.T + bias))[tokens], float32 [N], the mask token excluded.

    Where the weights of the values in a loss are known, `weighted_nll` saves two of five products.

    Args:
        hidden: [N, D].
        weight: [V, D].
        bias: [V] or ``None``.
        tokens: int64 [N].
        mask_id: id whose logit is -inf, or ``None``.
        scale: factor on the logits.
    """
    return _FusedLogProb.apply(hidden, weight, bias, tokens, mask_id, scale)


class _FusedLogProb(torch.autograd.Function):
    """log softmax(scale * (hidden @ weight.T + bias))[tokens], tile by tile, recomputed in the backward pass.

    Autograd over F.cross_entropy stores the logits, their softmax and their gradient; on a CPU the fresh pages of three
    [N, V] tensors cost more time than the product that is done again here. The tiles are columns of the vocabulary, not
    rows: the [V, D] gradient of the weight is then written once instead of being added to by every tile.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, mask_id: int | None, scale: float
    ) -> Tensor:
        dtype = product_dtype(hidden)
        log_sums, picked = [], torch.zeros(tokens.shape, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for columns, logits in _tiles(hidden.to(dtype), weight, bias, mask_id, scale):
                log_sums.append(logits.logsumexp(-1))
                column, here = _find(tokens, columns)
                picked += logits.gather(-1, column)[:, 0].where(here, 0.0)
        log_sum = torch.stack(log_sums).logsumexp(0)
        ctx.save_for_backward(hidden, weight, bias, tokens, log_sum)
        ctx.mask_id, ctx.scale, ctx.dtype = mask_id, scale, dtype
        return picked - log_sum

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, log_sum = ctx.saved_tensors
        made = _recomputed(hidden, weight, bias, tokens, log_sum, grads[0], ctx)
        return *made, None, None, None


def _recomputed(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, log_sum: Tensor, grad: Tensor, ctx: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of hidden, weight and bias, tile by tile of the vocabulary, from the logits made again."""
    grad = grad * ctx.scale
    low_hidden = hidden.to(ctx.dtype)
    grad_hidden = torch.zeros(hidden.shape, device=hidden.device)
    grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
    grad_bias = None if bias is None else torch.empty_like(bias)
    for columns, logits in _tiles(low_hidden, weight, bias, ctx.mask_id, ctx.scale):
        delta = logits.sub_(log_sum[:, None]).exp_().mul_(-grad[:, None])  # grad * (one-hot - softmax)...
        column, here = _find(tokens, columns)
        delta.scatter_add_(-1, column, grad.where(here, 0.0)[:, None])  # ...whose one is in one tile only
        low = delta.to(ctx.dtype)
        grad_hidden += low @ weight[columns].to(ctx.dtype)
        if grad_weight is not None:
            grad_weight[columns] = low.t() @ low_hidden
        if grad_bias is not None:
            grad_bias[columns] = delta.sum(0)
    return grad_hidden.to(hidden.dtype), grad_weight, grad_bias


def _tiles(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, mask_id: int | None, scale: float
) -> Iterator[tuple[slice, Tensor]]:
    """Yield (columns of the vocabulary, their float32 logits [N, width]); a tile overwrites the one before."""
    num_rows, vocab_size = hidden.shape[0], weight.shape[0]
    elements = TILE_ELEMENTS.get(hidden.device.type, CHUNK_ELEMENTS)
    width = min(vocab_size, max(256, elements // max(num_rows, 1)))
    buffer = torch.empty(num_rows * width, device=hidden.device)
    for start in range(0, vocab_size, width):
        columns = slice(start, min(start + width, vocab_size))
        logits = buffer[: num_rows * (columns.stop - start)].view(num_rows, columns.stop - start)
        tile = weight[columns].to(hidden.dtype).t()
        product_into(logits, hidden, tile)
        if bias is not None:
            logits += bias[columns]
        if scale != 1.0:
            logits *= scale
        if mask_id is not None and columns.start <= mask_id < columns.stop:
            logits[:, mask_id - start] = float("-inf")
        yield columns, logits


def _find(tokens: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Return where tokens [N] are in a tile: (column [N, 1], any valid one if elsewhere; whether they are here [N])."""
    column = tokens - columns.start
    here = (column >= 0) & (tokens < columns.stop)
    return column.where(here, 0)[:, None], here
