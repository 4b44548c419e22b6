"""Generation of block diffusion: blocks from left to right, each given the clean ones before it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dlmkit.parameterizations.next_token import NextToken
from dlmkit.ranges import Tokens, check_fields
from dlmkit.samplers.base import Sampler
from dlmkit.samplers.block_by_block import BlockByBlock
from dlmkit.types import Cache, Denoiser


@dataclass(frozen=True)
class Blockwise(BlockByBlock):
    """x^b ~ p(x^b | x^{<b}) for b = 0, 1, ..., each drawn by the sampler `within`, see `BlockByBlock` for its steps.

    Given tokens stay, but a block does not depend on what is given after it: infilling has the left context alone. The
    blocks before the current one are handed to the denoiser once (`Denoiser.prefill`), which is exact. Source: arXiv
    2503.09573 (BD3-LM), algorithm 2.

    Attributes:
        block_size: tokens per block, as in training; the last block may be shorter.
        within: the sampler inside a block.
    """

    block_size: Tokens = field()  # no default, although the base class has one
    within: Sampler[Any]

    def __post_init__(self) -> None:
        check_fields(self)
        check_within(self.within)

    @property
    def size(self) -> int:
        """`block_size`."""
        return self.block_size

    def columns(self, block: slice, length: int) -> slice:
        """Return the block alone."""
        return block

    def context(self, denoiser: Denoiser, x_t: Tensor, block: slice, cache: Cache | None) -> Cache | None:
        """Return the clean blocks before this one."""
        seen = 0 if cache is None else cache.length
        return denoiser.prefill(x_t[:, seen : block.start], self.block_size, cache)


def check_within(within: Sampler[Any]) -> None:
    """Raise ValueError for a sampler that cannot fill a block."""
    if isinstance(within.parameterization, NextToken) or isinstance(within, BlockByBlock):
        raise ValueError(f"within={within.name}: give a diffusion sampler without blocks, such as ancestral")
