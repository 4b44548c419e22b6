"""Semi-autoregressive decoding: a bidirectional network's text, decided block after block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dlmkit.ranges import Tokens, check_fields
from dlmkit.samplers.base import Sampler
from dlmkit.samplers.block_by_block import BlockByBlock
from dlmkit.samplers.blockwise import check_within
from dlmkit.types import Cache, Denoiser


@dataclass(frozen=True)
class SemiAutoregressive(BlockByBlock):
    """The sampler `within` decides the positions of a block before those of the next; the network reads the whole text.

    It is an order, for a network that was trained without blocks (arXiv 2502.09992, LLaDA, section 2.4, where blocks
    have 32 tokens); for one that was trained in blocks take `blockwise`. In this order the keys and values of the text
    around a block change little while it is decided, so that they may be computed once for each block (arXiv
    2505.22618, Fast-dLLM, section 3.2): faster, and approximate, since attention is bidirectional. What it costs in
    likelihood is measured in experiments/decoding.

    Attributes:
        block_length: positions that are decided before any later one; the last block may be shorter.
        within: the sampler inside a block.
        cache: "none" (exact); "prefix" keeps keys and values of what stands before the block; "both" of all around it.
    """

    block_length: Tokens
    within: Sampler[Any]
    cache: Literal["none", "prefix", "both"] = "none"

    needs_masks = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_within(self.within)

    @property
    def keeps_distribution(self) -> bool:  # type: ignore[override]
        """As the sampler inside a block, if nothing is approximated."""
        return self.within.keeps_distribution and self.cache == "none"

    @property
    def size(self) -> int:
        """`block_length`."""
        return self.block_length

    def columns(self, block: slice, length: int) -> slice:
        """Return the positions whose keys and values are computed in each step."""
        start = 0 if self.cache == "none" else block.start
        return slice(start, block.stop if self.cache == "both" else length)

    def context(self, denoiser: Denoiser, x_t: Tensor, block: slice, cache: Cache | None) -> Cache | None:
        """Return the keys and values around the block as they are now."""
        if self.cache == "none":
            return None
        t = torch.ones(len(x_t), dtype=torch.float64, device=x_t.device)
        here = self.columns(block, x_t.shape[1])
        return denoiser.freeze(x_t, t, here.start, here.stop, self.cache)
