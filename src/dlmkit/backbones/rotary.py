"""Rotary positions (arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor

FREQUENCY_BASE = 10_000.0
"""Of the rotary frequencies, and of the time embedding's."""

Rotary = tuple[Tensor, Tensor]
"""Cosine and sine, each float32 [M, D / H / 2]."""


def rotary_angles(length: int, head_size: int, device: torch.device) -> Rotary:
    """Return cos and sin of position * frequency, each float32 [length, head_size / 2] (arXiv 2104.09864).

    Computed in each forward pass, once for all layers: a buffer would be rounded by ``model.to(torch.bfloat16)`` and
    left uninitialised when a model built on the meta device is materialised.
    """
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32, device=device) / head_size
    positions = torch.arange(length, dtype=torch.float32, device=device)
    angles = positions[:, None] * FREQUENCY_BASE**-exponents
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Return x [B, H, M, D/H] rotated by its positions, dimension j paired with j + D/H/2; in float32 or above."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
