"""The input of one pass over [x_t | x_0] in block diffusion: every noisy block beside the clean blocks before it.

Positions p are those of the plain input: 0 .. M - 1, M = L, or L + 1 with a prepended BOS. A slot is one place in the
input of the pass; several slots may stand for one position. Q slots in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dlmkit.backbones.attention import Mask
from dlmkit.backbones.tiles import tiles_of


@dataclass(frozen=True, eq=False)
class Layout:
    """The slots of a pass, the noisy ones first.

    Attributes:
        positions: int64 [Q], the position that each slot stands for.
        clean: bool [Q], whether the slot holds the clean token of its position rather than the noisy one.
        blocks: int64 [Q], the block that each slot belongs to.
        is_context: bool [Q]; clean slots, whose outputs are not used.
        mask: attention mask [1, 1, Q, Q].
        outputs: int64 [L], the slot whose output predicts each token; 0 where none does.
    """

    positions: Tensor
    clean: Tensor
    blocks: Tensor
    is_context: Tensor
    mask: Mask
    outputs: Tensor


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # cached: steps with gradients use it too, whatever call comes first
def block_layout(length: int, block_size: int, shift: bool, has_bos: bool, last: bool, device: torch.device) -> Layout:
    """Return the layout for `length` tokens in blocks of `block_size`.

    Block b has tokens [b S, (b + 1) S). Without a shift its noisy slots are these. With a shift the output for token i
    is at the input position before it, so that they begin one position earlier, at the last token of the block before:
    for b > 0 that token is clean. A noisy slot attends to its own block's noisy slots, and to the clean slots of all
    positions before the block's first; a clean slot attends to the clean slots of its own block and those before. So no
    clean slot depends on any noise, and no noisy one on its own block's clean tokens or on later blocks.

    Args:
        length: L.
        block_size: S, at least 1; the last block may be shorter.
        shift: see :class:`dlmkit.backbones.base.Backbone`.
        has_bos: whether a BOS stands at position 0, before token 0.
        last: only the last block's noisy slots.
        device: where the tensors are.
    """
    before = int(has_bos)  # token i is at position i + before
    starts = list(range(0, length, block_size))
    slots: list[tuple[int, int, bool]] = []  # position, block, clean
    outputs = [0] * length
    for block, start in enumerate(starts):
        if last and start != starts[-1]:
            continue
        end = min(start + block_size, length)
        first = max(start + before - int(shift), 0)
        for position in range(first, end + before):
            predicted = position - before + int(shift)
            if start <= predicted < end:
                outputs[predicted] = len(slots)
            slots.append((position, block, position < start + before))
    num_noisy = len(slots)
    begin = {block: max(start + before - int(shift), 0) for block, start in enumerate(starts)}
    for block in range(len(starts) - 1):
        slots += [(position, block, True) for position in range(begin[block], begin[block + 1])]

    positions, blocks, clean = (torch.tensor(column) for column in zip(*slots, strict=True))
    is_context = torch.arange(len(slots)) >= num_noisy
    earlier = blocks[None, :] < blocks[:, None]
    same = blocks[None, :] == blocks[:, None]
    own_half = is_context[None, :] == is_context[:, None]
    visible = (is_context[None, :] & earlier) | (same & own_half)
    positions = positions.to(device)
    # A GPU has a kernel that skips hidden tiles, flex attention; on a CPU it has no backward pass.
    tiles = tiles_of(visible) if device.type == "cpu" else None
    mask = Mask(visible[None, None].to(device), positions, tiles)
    clean, blocks, is_context, at = (each.to(device) for each in (clean, blocks, is_context, torch.tensor(outputs)))
    return Layout(positions, clean, blocks, is_context, mask, at)
