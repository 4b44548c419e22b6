"""A clean prefix handed to a denoiser once: the plain form, which keeps the tokens and reads them again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from dlmkit.types import Cache, Context, NetworkInput


@dataclass(frozen=True)
class TokenPrefix:
    """The tokens of a clean prefix, a :class:`dlmkit.types.Cache` without activations.

    Attributes:
        tokens: int64 [B, P].
        block_size: tokens per block in block diffusion, or ``None``.
    """

    tokens: Tensor
    block_size: int | None

    exact: ClassVar[bool] = True

    @property
    def length(self) -> int:
        """P."""
        return self.tokens.shape[1]

    def select(self, rows: Tensor) -> TokenPrefix:
        """Return the prefix of the sequences `rows` (int64 [R])."""
        return replace(self, tokens=self.tokens[rows])


class RereadsPrefix:
    """`prefill` of a denoiser that keeps no activations: every call reads the prefix again."""

    supports_cache: bool = False

    def prefill(self, tokens: Tensor, block_size: int | None = None, cache: Cache | None = None) -> Cache:
        """Return the tokens so far, see :class:`dlmkit.types.Denoiser`."""
        if cache is None:
            return TokenPrefix(tokens, block_size)
        assert isinstance(cache, TokenPrefix)
        return TokenPrefix(torch.cat([cache.tokens, tokens], dim=1), cache.block_size)


def expand_prefix(inputs: NetworkInput) -> NetworkInput:
    """Return an input whose x_t contains the prefix of `inputs.cache`; [B, P + L].

    Its prediction has P + L positions, of which the last L are those of `inputs.x_t`. Unchanged without a cache.
    """
    cache = inputs.cache
    if cache is None:
        return inputs
    assert isinstance(cache, TokenPrefix), "this denoiser made no such cache"
    tokens = torch.cat([cache.tokens, inputs.x_t], dim=1)
    context = None if cache.block_size is None else Context(tokens, cache.block_size, last=True)
    return replace(inputs, x_t=tokens, context=context, cache=None)
