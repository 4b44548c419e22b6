"""What the trunk reads where keys and values of other positions are kept: the new positions alone.

A causal prefix of P tokens keeps all their input positions, and the state at the last one, which predicts token P. In
block diffusion it keeps the clean slots of the blocks before the current one, as in training's layout
(:mod:`dlmkit.backbones.block_layout`): what is kept is what training attends to. With a shift the last clean token is a
noisy slot of the block that it predicts, so that it is left for later calls, which begin there.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dlmkit.backbones.alignment import Alignment
from dlmkit.backbones.attention import Mask
from dlmkit.backbones.inputs import TrunkInput
from dlmkit.backbones.kv_cache import KeyValueCache, Stored
from dlmkit.prefix import TokenPrefix
from dlmkit.types import NetworkInput


def num_kept(text: TokenPrefix, alignment: Alignment) -> int:
    """Return how many input positions a clean prefix keeps: whole blocks of it, where there are blocks."""
    size = text.block_size or 1
    tokens = text.length // size * size
    return max(tokens + int(alignment.has_bos) - int(alignment.shift and not alignment.causal), 0)


def prefix_input(text: TokenPrefix, stored: Stored | None, alignment: Alignment) -> TrunkInput | None:
    """Return the pass over the positions of a clean prefix that are not stored yet; ``None`` where all are."""
    first, stop = 0 if stored is None else len(stored.positions), num_kept(text, alignment)
    if first == stop:
        return None
    device = text.tokens.device
    positions = torch.arange(first, stop, device=device)
    return TrunkInput(
        ids=_all_ids(text.tokens, alignment)[:, first:stop],
        positions=positions,
        t=torch.zeros(len(text.tokens), dtype=torch.float64, device=device),
        mask=_prefix_mask(first, stop, text.block_size, alignment, device),
        causal_window=alignment.causal,
        alignment=alignment,
        slots=positions[:0],
        length=text.length,
        predicted=slice(0),
        past=stored,
    )


def _prefix_mask(
    first: int, stop: int, block_size: int | None, alignment: Alignment, device: torch.device
) -> Mask | None:
    """Return the mask of queries at [first, stop) and keys at [0, stop): causal over tokens, or over blocks.

    ``None`` where all are visible, or where the pass is causal from its beginning.
    """
    positions = torch.arange(stop, device=device)
    if block_size is None:
        if first == 0 or stop - first == 1:
            return None
        order = positions
    else:
        early = int(alignment.shift) - int(alignment.has_bos)  # block b begins at position b S - early
        if (first + early) // block_size == (stop - 1 + early) // block_size:
            return None
        order = (positions + early) // block_size
    return Mask((order[first:, None] >= order[None, :])[None, None], positions[first:], key_positions=positions)


def run_of_positions(start: int, stop: int, alignment: Alignment) -> tuple[int, int]:
    """Return the input positions, the first one and the end, at which tokens [start, stop) stand or are predicted."""
    before = int(alignment.has_bos)
    return max(start + before - int(alignment.shift), 0), stop + before


def reads_stored(inputs: NetworkInput, cache: KeyValueCache, alignment: Alignment) -> bool:
    """Return whether a call is one that the stored keys and values are right for; the others read the text again.

    They were made with full attention, and in block diffusion for one block after whole ones.
    """
    if cache.stored is None or (inputs.attention.ratio < 1.0 and not alignment.causal):
        return False
    size, end = cache.text.block_size, cache.length + inputs.x_t.shape[1]
    return size is None or cache.length // size == (end - 1) // size


def input_behind(inputs: NetworkInput, cache: KeyValueCache, alignment: Alignment) -> TrunkInput:
    """Return the pass over the input positions that predict x_t, and those that x_t stands at.

    Raises:
        ValueError: the cache is of what is around another number of tokens.
    """
    num, start = inputs.x_t.shape[1], cache.length
    device = inputs.x_t.device
    before, early = int(alignment.has_bos), int(alignment.shift)
    if cache.num_tokens not in (None, num):
        raise ValueError(
            f"x_t has {num} tokens, and the cache is of what is around {cache.num_tokens}: give these, or freeze again"
        )
    known = cache.first - int(cache.last is not None)  # the first position whose state the pass, or the cache, has
    # No prediction of a causal network depends on the last token.
    stop = start + num + before - int(alignment.causal)
    positions = torch.arange(cache.first, stop, device=device)
    mask = None
    if alignment.causal and len(positions) > 1:
        keys = torch.arange(stop, device=device)
        mask = Mask((positions[:, None] >= keys[None, :])[None, None], positions, key_positions=keys)
    return TrunkInput(
        ids=_all_ids(cache.text.around(inputs.x_t), alignment)[:, cache.first : stop],
        positions=positions,
        t=inputs.t if inputs.t.ndim == 1 else inputs.t[:, -1],
        mask=mask,
        causal_window=alignment.causal,
        alignment=alignment,
        slots=(torch.arange(num, device=device) + start + before - early - known).clamp(min=0),
        length=start + num,
        predicted=slice(start, start + num),
        past=cache.stored,
        known=cache.last,
    )


def _all_ids(tokens: Tensor, alignment: Alignment) -> Tensor:
    """Return the ids at all input positions, the last one of a causal network too."""
    return replace(alignment, causal=False).ids(tokens)
