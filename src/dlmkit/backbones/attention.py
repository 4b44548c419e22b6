"""Which positions see which: causality, annealing and packed documents as one boolean mask, or none at all."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_mask(
    length: int,
    device: torch.device | str,
    *,
    causal: bool,
    segments: Tensor | None = None,
    visible: Tensor | None = None,
) -> Tensor | None:
    """Return bool [1 or B, 1, L, L], True where query (row) may see key (column), or ``None``.

    ``None`` means that the plain kernel suffices: everything is visible, or, with ``causal``, the triangle is (the
    caller then asks its kernel for causal attention, which is faster than any mask).

    Args:
        length: L.
        device: where the mask is made.
        causal: hide the future.
        segments: int64 [B, L]; positions of different documents do not see each other.
        visible: bool [L, L]; future positions that are seen although ``causal`` (attention annealing).
    """
    if segments is None and visible is None:
        return None
    mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=device)
    if causal or visible is not None:
        mask = mask.tril()
    if visible is not None:
        mask = mask | visible
    if segments is not None:
        mask = mask & (segments[:, None, :, None] == segments[:, None, None, :])
    return mask


def annealed_visibility(length: int, ratio: float, seed: int, device: torch.device | str) -> Tensor | None:
    """Return the Bernoulli(ratio) draw, bool [L, L], of one training step, or ``None`` once everything is visible.

    Source: arXiv 2410.17891, section 3.2 (attention mask annealing): visible = causal OR Bernoulli(ratio).

    Raises:
        ValueError: ratio outside [0, 1].
    """
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"attention ratio {ratio} is outside [0, 1]: give the share of future positions that are seen")
    if ratio == 1.0:
        return None
    generator = torch.Generator().manual_seed(seed)
    # Drawn on the CPU, so that every rank and every kind of device sees the same mask.
    return (torch.rand(length, length, generator=generator) < ratio).to(device)
