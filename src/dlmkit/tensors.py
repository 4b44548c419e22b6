"""Small operations on tensors that several kinds of parts need."""

from __future__ import annotations

import torch
from torch import Tensor


def scatter(values: Tensor, where: Tensor) -> Tensor:
    """Return [B, L] with `values` [N] at the True entries of `where` and zero elsewhere, differentiably."""
    out = torch.zeros(where.shape, dtype=values.dtype, device=values.device)
    return out.masked_scatter(where, values)


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
