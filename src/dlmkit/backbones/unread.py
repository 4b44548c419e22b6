"""Leaving noisy blocks out of a pass of block diffusion where no prediction of theirs is read.

No other slot attends to a noisy block, so that the rest is computed as before. Under absorbing noise a block without a
mask has no loss: of blocks of one token that is half of them.
Shapes: B sequences, K blocks, Q slots of a layout, M of them kept, L tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dlmkit.backbones.attention import Mask
from dlmkit.backbones.block_layout import Layout
from dlmkit.backbones.tiles import tiles_of

WORTHWHILE = 0.9
"""Largest share of the slots that is kept: more do not make up for a mask that differs from sequence to sequence."""


class Kept(NamedTuple):
    """What is kept of a layout.

    Attributes:
        slots: int64 [B, M], ascending.
        outputs: int64 [B, L], which of them predicts each token; any one where it is left out.
    """

    slots: Tensor
    outputs: Tensor


def kept_slots(layout: Layout, read: Tensor) -> Kept | None:
    """Return the slots that remain for predictions that are read, bool [B, L]; ``None`` where these are nearly all.

    Each sequence keeps as many blocks as the one that needs most, and blocks of another size than the others always.
    """
    noisy = layout.blocks[~layout.is_context]
    sizes = noisy.bincount()
    num_blocks = len(sizes)
    token_block = layout.blocks[layout.outputs]
    needed = torch.zeros(len(read), num_blocks, device=read.device).index_add_(1, token_block, read.float()) > 0
    needed |= sizes != sizes.mode().values
    most = int(needed.sum(1).max())
    chosen = needed.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    keep = torch.zeros_like(needed).scatter_(1, chosen, True)
    slot_kept = keep[:, layout.blocks.clamp_max(num_blocks - 1)] | layout.is_context
    slots = slot_kept.nonzero()[:, 1].view(len(read), -1)
    if slots.shape[1] > WORTHWHILE * len(layout.blocks):
        return None
    return Kept(slots, (slot_kept.cumsum(1) - 1).clamp_min(0)[:, layout.outputs])


def kept_mask(mask: Mask, kept: Kept) -> Mask:
    """Return the mask [B, 1, M, M] between the slots that are kept, with its tiles."""
    slots = kept.slots
    batch, _, size, _ = mask.visible.shape
    rows = slots + size * torch.arange(batch, device=slots.device)[:, None]
    visible = mask.visible.reshape(-1).take(rows[:, :, None] * size + slots[:, None, :])
    return Mask(visible[:, None], mask.positions[slots], tiles_of(visible.any(0)))
