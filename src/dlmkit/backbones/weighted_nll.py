"""The weighted cross-entropy of a linear head with its gradient, in three matrix products; [N, V] is never stored.

Shapes: N positions, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._triton import has_triton

from dlmkit.backbones.fused_log_prob import fused_log_prob
from dlmkit.backbones.products import add_product, product_dtype, product_into
from dlmkit.types import WeightedNLL

ROWS_ELEMENTS = {"cpu": 2**25, "cuda": 2**28}
"""Logits that are held at a time, in whole rows of the vocabulary, of the type of the products."""

ROW_ALIGNMENT = {"cpu": 1, "cuda": 64}
"""Rows of logits are padded to a multiple of this; matrix units of a GPU want rows that begin at whole 16 bytes."""

TILE_ELEMENTS = 2**21
"""Float32 logits that a CPU works on at a time: what stays in its cache."""

Softmax = Callable[[Tensor, Tensor, int, int | None], Tensor]
"""(logits [n, >= V], tokens [n], V, mask_id) -> nll [n], float32; the logits become softmax - one-hot, 0 beyond V."""


def weighted_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    token_weight: Tensor,
    mask_id: int | None,
    scale: float,
) -> WeightedNLL:
    """Return -log softmax(scale * (hidden @ weight.T + bias))[tokens] and its weighted sum, the mask token excluded.

    With gradients on, the gradient of the sum is computed in the forward pass: logits are made once, in whole rows,
    turned into softmax - one-hot in place, and multiplied with the table and with the hidden states: three products of
    size N V D, where recomputing takes five. A backward pass through `values` instead of `total`, or a second one,
    recomputes. Under autocast the products have its type, and what is between them is float32 on a CPU.

    Args:
        hidden: [N, D].
        weight: [V, D].
        bias: [V] or ``None``.
        tokens: int64 [N].
        token_weight: [N], factor of each position in the sum; no gradient flows into it.
        mask_id: id whose logit is -inf, or ``None``.
        scale: factor on the logits.
    """
    token_weight = token_weight.detach().float()
    total, values = _WeightedNLL.apply(hidden, weight, bias, tokens, token_weight, mask_id, scale)
    return WeightedNLL(total, values)


def product_rows(num_columns: int, device_type: str) -> int:
    """Return how many rows of logits one product makes."""
    return max(64, ROWS_ELEMENTS.get(device_type, ROWS_ELEMENTS["cpu"]) // num_columns)


def tile_rows(num_columns: int) -> int:
    """Return how many rows a CPU works on in float32 at a time."""
    return max(1, TILE_ELEMENTS // num_columns)


class _WeightedNLL(torch.autograd.Function):
    """(hidden, weight, bias, tokens, token_weight, mask_id, scale) -> (total, values [N]), both differentiable."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        token_weight: Tensor,
        mask_id: int | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        dtype = product_dtype(hidden)
        values = torch.empty(tokens.shape, device=hidden.device)
        table = _padded(weight, dtype)
        gradients = _Gradients(hidden, weight, bias, len(table), ctx.needs_input_grad)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows, logits in _logits(hidden.to(dtype), table, bias, scale):
                values[rows] = _softmax_of(logits)(logits, tokens[rows], len(weight), mask_id)
                gradients.add(rows, logits, table, hidden[rows], token_weight[rows] * scale)
        ctx.save_for_backward(hidden, weight, bias, tokens, token_weight)
        ctx.gradients = gradients
        ctx.mask_id, ctx.scale, ctx.dtype = mask_id, scale, dtype
        ctx.set_materialize_grads(False)
        return (values * token_weight).sum(), values  # not a product, which autocast would round

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor | None, grad_values: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_values is None and grad_total is not None and ctx.gradients is not None:
            made, ctx.gradients = ctx.gradients.times(grad_total), None  # in place: a second backward pass recomputes
        else:
            made = _recomputed(ctx, grad_total, grad_values)
        return *made, None, None, None, None


def _recomputed(ctx: Any, grad_total: Tensor | None, grad_values: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of hidden, weight and bias for any gradients of `_WeightedNLL`'s results."""
    hidden, weight, bias, tokens, token_weight = ctx.saved_tensors
    leaves = [one.detach().requires_grad_(True) for one in (hidden, weight, bias) if one is not None]
    bias = None if bias is None else leaves[2]
    is_low = ctx.dtype != hidden.dtype
    with torch.enable_grad(), torch.autocast(hidden.device.type, ctx.dtype, enabled=is_low):
        values = -fused_log_prob(leaves[0], leaves[1], bias, tokens, ctx.mask_id, ctx.scale)
        total = (values * token_weight).sum()
    results = [(total, grad_total), (values, grad_values)]
    outputs, grads = zip(*((out, grad) for out, grad in results if grad is not None), strict=True)
    made = torch.autograd.grad(outputs, leaves, grads)
    return (*made, None)[:3]


class _Gradients:
    """The gradients of hidden, weight and bias, summed over pieces of the rows.

    Args:
        hidden: [N, D].
        weight: [V, D].
        bias: [V] or ``None``.
        num_columns: of the logits, V or more.
        needed: whether the gradients of these three are.
    """

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, num_columns: int, needed: tuple[bool, ...]
    ) -> None:
        self.vocab_size = len(weight)
        self.hidden = torch.empty_like(hidden) if needed[0] else None
        self.weight = weight.new_empty(num_columns, weight.shape[1]) if needed[1] else None
        self.bias = bias.new_zeros(num_columns) if bias is not None and needed[2] else None
        if not len(hidden) and self.weight is not None:
            self.weight.zero_()

    def add(self, rows: slice, delta: Tensor, table: Tensor, hidden: Tensor, factor: Tensor) -> None:
        """Add the part of some rows.

        Args:
            rows: which ones.
            delta: [n, num_columns], softmax - one-hot.
            table: [num_columns, D], of the type of the products.
            hidden: [n, D].
            factor: [n], what each row counts in the sum.
        """
        if self.hidden is not None:
            self.hidden[rows] = (delta @ table).to(self.hidden.dtype).mul_(factor[:, None])
        if self.weight is not None:
            write = product_into if rows.start == 0 else add_product
            write(self.weight, delta.t(), (hidden * factor[:, None]).to(delta.dtype))
        if self.bias is not None:
            self.bias += factor.to(delta.dtype) @ delta

    def times(self, factor: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients times a scalar, in place."""
        for gradient in (self.hidden, self.weight, self.bias):
            if gradient is not None:
                gradient.mul_(factor)
        weight = None if self.weight is None else self.weight[: self.vocab_size]
        return self.hidden, weight, None if self.bias is None else self.bias[: self.vocab_size]


def _padded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the table in the type of the products, with rows of zeros up to the alignment of the logits."""
    vocab_size, width = weight.shape
    missing = -vocab_size % ROW_ALIGNMENT.get(weight.device.type, 1)
    if not missing:
        return weight.to(dtype)
    table = weight.new_zeros(vocab_size + missing, width, dtype=dtype)
    table[:vocab_size] = weight
    return table


def _logits(hidden: Tensor, table: Tensor, bias: Tensor | None, scale: float) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows, their logits [n, num_columns]) of the type of the products; a piece overwrites the one before."""
    num_columns, num_rows = table.shape[0], hidden.shape[0]
    most = product_rows(num_columns, hidden.device.type)
    buffer = torch.empty(min(most, num_rows), num_columns, dtype=hidden.dtype, device=hidden.device)
    for start in range(0, num_rows, most):
        rows = slice(start, min(start + most, num_rows))
        logits = torch.mm(hidden[rows], table.t(), out=buffer[: rows.stop - start])
        if bias is not None:
            logits[:, : len(bias)] += bias.to(logits.dtype)
        if scale != 1.0:
            logits *= scale
        yield rows, logits


def _softmax_of(logits: Tensor) -> Softmax:
    """Return the way to turn these logits into a gradient: compiled on a GPU, in tiles that stay in cache elsewhere."""
    return _compiled_softmax() if logits.is_cuda and has_triton() else _softmax_in_tiles


def _softmax_in_tiles(logits: Tensor, tokens: Tensor, vocab_size: int, mask_id: int | None) -> Tensor:
    num_rows, num_columns = logits.shape
    logits[:, vocab_size:] = float("-inf")
    if mask_id is not None:
        logits[:, mask_id] = float("-inf")
    values = torch.empty(num_rows, device=logits.device)
    most = tile_rows(num_columns)
    scratch = torch.empty(min(most, num_rows), num_columns, device=logits.device)
    for start in range(0, num_rows, most):
        rows = slice(start, min(start + most, num_rows))
        tile, column = logits[rows], tokens[rows, None]
        exact = scratch[: len(tile)].copy_(tile)
        top, picked = exact.amax(-1, keepdim=True), exact.gather(-1, column)
        torch.softmax(exact, -1, out=exact)
        # The largest probability is 1 / sum(exp(logits - top)), and never too small for its logarithm.
        values[rows] = (top - picked - exact.amax(-1, keepdim=True).log())[:, 0]
        tile.copy_(exact.scatter_add_(-1, column, torch.full_like(picked, -1.0)))
    return values


def _softmax_whole(logits: Tensor, tokens: Tensor, vocab_size: int, mask_id: int | None) -> Tensor:
    """As `_softmax_in_tiles`, as one expression for a compiler to fuse."""
    columns = torch.arange(logits.shape[1], device=logits.device)
    allowed = columns < vocab_size
    if mask_id is not None:
        allowed &= columns != mask_id
    exact = logits.float().masked_fill(~allowed, float("-inf"))
    log_sum = exact.logsumexp(-1, keepdim=True)
    values = (log_sum - exact.gather(-1, tokens[:, None]))[:, 0]
    logits.copy_((exact - log_sum).exp() - (columns == tokens[:, None]).float())
    return values


@cache
def _compiled_softmax() -> Softmax:
    compiled = torch.compile(_softmax_whole)

    def softmax(logits: Tensor, tokens: Tensor, vocab_size: int, mask_id: int | None) -> Tensor:
        for tensor in (logits, tokens):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)  # the number of masked positions is another one at each step
        return compiled(logits, tokens, vocab_size, mask_id)

    return softmax
