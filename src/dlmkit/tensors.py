"""Small operations on tensors that several kinds of parts need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def scatter(values: Tensor, where: Tensor) -> Tensor:
    """Return [B, L] with `values` [N] at the True entries of `where` and zero elsewhere, differentiably."""
    return _Scatter.apply(values, where)


class _Scatter(torch.autograd.Function):
    """Its gradient stays one number where it is given as one (`one_number`), as from a sum over the result."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, where: Tensor) -> Tensor:
        ctx.save_for_backward(where)
        ctx.num_values = values.shape
        return torch.zeros(where.shape, dtype=values.dtype, device=values.device).masked_scatter(where, values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (where,) = ctx.saved_tensors
        number = one_number(grads[0])
        return (grads[0][where] if number is None else number.expand(ctx.num_values)), None


def one_number(gradient: Tensor) -> Tensor | None:
    """Return the number [] that all entries are, or ``None``.

    It is read off the strides, not the values: a tensor that a number was expanded to, as the gradient of a sum is.
    """
    if any(stride for stride, size in zip(gradient.stride(), gradient.shape, strict=True) if size != 1):
        return None
    return gradient[(0,) * gradient.ndim] if gradient.numel() else gradient.new_zeros(())


def at_positions(per_sequence: Tensor, where: Tensor) -> Tensor:
    """Return per-sequence values [B] repeated to the True entries of `where` [B, L], as [N]."""
    return per_sequence[:, None].expand(where.shape)[where]


def row_of(where: Tensor) -> Tensor:
    """Return the sequence of each True entry of `where` [B, L], int64 [N]."""
    return at_positions(torch.arange(where.shape[0], device=where.device), where)


def copied(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on `device`; the program does not wait for a GPU."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def categorical(probs: Tensor, uniform: Tensor) -> Tensor:
    """Draw one id per row, int64 [N], from unnormalised probabilities with numbers in (0, 1), float64 [N].

    The distribution function is inverted in float64: tokens down to a probability of 1e-16 are drawn as often as they
    should be, and one of probability 0 never.

    Args:
        probs: [N, V], or [V] for all rows.
        uniform: [N].
    """
    cumulated = probs.double().cumsum(-1)
    total = cumulated[..., -1]
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    if probs.ndim == 1:
        return torch.searchsorted(cumulated, target, right=True)
    return torch.searchsorted(cumulated, target[:, None], right=True)[:, 0]
