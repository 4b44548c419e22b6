"""Scaling and clipping of a gradient whose norm is known, in one pass over it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CLIP_EPS = 1e-6
"""Added to a norm that is divided by, as torch.nn.utils.clip_grad_norm_ does."""


def scale_and_clip(gradients: Sequence[Tensor], norm: float, factor: float, most: float | None) -> None:
    """Multiply gradients by `factor` in place, and then by what brings their norm to `most`, where it is larger.

    Args:
        gradients: of all weights.
        norm: theirs before.
        factor: 0 or larger.
        most: the largest norm; ``None`` or 0 for any.
    """
    clip = min(1.0, most / (norm * factor + CLIP_EPS)) if most else 1.0
    torch._foreach_mul_(list(gradients), factor * clip)
