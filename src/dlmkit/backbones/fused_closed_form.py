"""A closed form of each row of logits under an output head, fused with its gradient: [N, V] is never stored.

Shapes: N positions, n of them at a time, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dlmkit.backbones.products import add_product, product_into
from dlmkit.tensors import one_number
from dlmkit.types import ClosedForm, WeightedValues

PRODUCT_BYTES = {"cpu": 2**26, "cuda": 2**29}
"""Logits that one matrix product makes, in the dtype of the product."""

TILE_ELEMENTS = {"cpu": 2**17, "cuda": 2**27}
"""Logits that the closed form passes over at a time, several times: on a CPU what stays in the cache of a core."""

ELSEWHERE = 2**26
"""Both on other kinds of device."""


def product_rows(vocab_size: int, device_type: str, dtype: torch.dtype) -> int:
    """Return how many rows of logits of `dtype` one product makes."""
    return max(64, PRODUCT_BYTES.get(device_type, ELSEWHERE) // (dtype.itemsize * vocab_size))


def tile_rows(vocab_size: int, device_type: str) -> int:
    """Return how many rows of logits the closed form passes over at a time."""
    return max(1, TILE_ELEMENTS.get(device_type, ELSEWHERE) // vocab_size)


@dataclass(frozen=True, eq=False)
class Layer:
    """An output layer: logits = cap * tanh(scale * (hidden @ weight.T + bias) / cap), the mask token at -inf.

    Attributes:
        weight: [V, D].
        bias: [V] or ``None``.
        scale: factor on the raw logits.
        softcap: bound of the tanh, or ``None``.
        mask_id: id whose logit is -inf, or ``None``.
        dtype: of the products; anything else is in float32 (float64 where the products are).
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None
    mask_id: int | None
    dtype: torch.dtype

    @property
    def wide(self) -> torch.dtype:
        """The dtype of logits, values and sums."""
        return torch.promote_types(self.dtype, torch.float32)

    def finish_(self, logits: Tensor) -> Tensor | None:
        """Turn products [n, V] into logits, in place; return the slope of the soft cap [n, V], where there is one.

        The gradient with respect to the product is slope * scale times that with respect to the logits.
        """
        if self.bias is not None:
            logits.add_(self.bias)
        if self.scale != 1.0:
            logits.mul_(self.scale)
        slope = None
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_()
            slope = 1.0 - logits * logits
            logits.mul_(self.softcap)
        if self.mask_id is not None:
            logits[:, self.mask_id] = float("-inf")
        return slope


def fused_closed_form(
    form: ClosedForm, hidden: Tensor, layer: Layer, factor: Tensor, arguments: tuple[Tensor, ...]
) -> WeightedValues:
    """Return form(logits, *arguments), [N], and the same times factor, differentiable in hidden, weight and bias.

    Args:
        form: the closed form.
        hidden: [N, D].
        layer: from hidden states to logits.
        factor: [N], of each value in the loss.
        arguments: of the form, [N] each.
    """
    factor = factor.detach().to(layer.wide)
    return WeightedValues(*_ClosedForm.apply(hidden, layer.weight, layer.bias, factor, form, layer, *arguments))


@torch.no_grad()
def values_alone(form: ClosedForm, hidden: Tensor, layer: Layer, arguments: tuple[Tensor, ...]) -> Tensor:
    """Return form(logits, *arguments), [N], without gradients; arguments as in `fused_closed_form`."""
    values = torch.empty(hidden.shape[0], dtype=layer.wide, device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        for here, raw in _products(hidden, layer.weight.to(layer.dtype)):
            for rows in _tiles(raw):
                at = slice(here.start + rows.start, here.start + rows.stop)
                logits = raw[rows].to(layer.wide)
                layer.finish_(logits)
                values[at] = form(logits, *(argument[at] for argument in arguments))
    return values


class _ClosedForm(torch.autograd.Function):
    """factor * form(logits), with the gradient made in the forward pass.

    Logits are computed once, a block of rows at a time, turned into their gradient in place, and multiplied with the
    weight and the hidden states: three products of size N V D, where recomputing takes four. The values already have
    their factors, so that the gradient of a loss that is their sum lacks one number at most, by which the backward pass
    multiplies. Whether it is one number is read off its strides, not its values, which would wait for the device. For
    any other gradient, and for a second backward pass, all is computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        factor: Tensor,
        form: ClosedForm,
        layer: Layer,
        *arguments: Tensor,
    ) -> tuple[Tensor, Tensor]:
        values, ctx.made = _differentiate(form, hidden, layer, factor, arguments, ctx.needs_input_grad[1])
        ctx.save_for_backward(hidden, weight, bias, factor, *arguments)
        ctx.form, ctx.layer = form, layer
        ctx.mark_non_differentiable(values)
        return values * factor, values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, factor, *arguments = ctx.saved_tensors
        grad, made, ctx.made = grads[0], ctx.made, None  # scaled in place, once
        number = one_number(grad)
        if made is None or number is None:
            layer = replace(ctx.layer, weight=weight, bias=bias)
            needs_weight = ctx.needs_input_grad[1]
            _, made = _differentiate(ctx.form, hidden, layer, factor * grad, tuple(arguments), needs_weight)
        else:
            for each in made:
                if each is not None:
                    each.mul_(number.to(each.dtype))
        return *made, None, None, None, *(None for _ in arguments)


def _differentiate(
    form: ClosedForm, hidden: Tensor, layer: Layer, factor: Tensor, arguments: tuple[Tensor, ...], needs_weight: bool
) -> tuple[Tensor, tuple[Tensor, Tensor | None, Tensor | None]]:
    """Return the values [N], without factors, and the gradients of their sum with them: of hidden, weight and bias."""
    wide, weight, bias, factor = layer.wide, layer.weight, layer.bias, factor * layer.scale
    table = weight.to(layer.dtype)
    values = torch.empty(hidden.shape[0], dtype=wide, device=hidden.device)
    grad_hidden = torch.empty_like(hidden)
    grad_weight = torch.empty(weight.shape, dtype=wide, device=weight.device) if needs_weight else None
    if grad_weight is not None and not len(hidden):
        grad_weight.zero_()
    grad_bias = None if bias is None else torch.zeros(bias.shape, dtype=wide, device=bias.device)
    with torch.autocast(hidden.device.type, enabled=False):
        for here, raw in _products(hidden, table):
            for rows in _tiles(raw):
                at = slice(here.start + rows.start, here.start + rows.stop)
                logits = raw[rows].to(wide)
                slope = layer.finish_(logits)
                values[at] = form.to_gradient_(logits, *(argument[at] for argument in arguments))
                if slope is not None:
                    logits.mul_(slope)
                if grad_bias is not None:
                    grad_bias.addmv_(logits.t(), factor[at])
                if raw.dtype != wide:  # else they are the same memory
                    raw[rows] = logits
            scale = factor[here, None]
            grad_hidden[here] = (raw @ table) * scale
            if grad_weight is not None:
                write = product_into if here.start == 0 else add_product
                write(grad_weight, raw.t(), (hidden[here] * scale).to(raw.dtype))
    return values, (
        grad_hidden,
        None if grad_weight is None else grad_weight.to(weight.dtype),
        None if bias is None or grad_bias is None else grad_bias.to(bias.dtype),
    )


def _products(hidden: Tensor, table: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows of hidden, their products with the table [n, V]); a block overwrites the one before."""
    num_rows, vocab_size = hidden.shape[0], table.shape[0]
    size = min(num_rows, product_rows(vocab_size, hidden.device.type, table.dtype))
    buffer = torch.empty(size, vocab_size, dtype=table.dtype, device=hidden.device)
    for start in range(0, num_rows, max(size, 1)):
        here = slice(start, min(start + size, num_rows))
        yield here, torch.mm(hidden[here].to(table.dtype), table.t(), out=buffer[: here.stop - start])


def _tiles(raw: Tensor) -> Iterator[slice]:
    """Yield the rows of each tile of a block [n, V]."""
    size = tile_rows(raw.shape[1], raw.device.type)
    for start in range(0, raw.shape[0], size):
        yield slice(start, min(start + size, raw.shape[0]))
