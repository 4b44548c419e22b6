"""A clean prefix handed to a denoiser once: the plain form, which keeps the tokens and reads them again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from dlmkit.types import Cache, Context, NetworkInput


@dataclass(frozen=True)
class TokenPrefix:
    """The tokens around those that are asked about, a :class:`dlmkit.types.Cache` without activations.

    Attributes:
        tokens: those before, int64 [B, P].
        block_size: tokens per block in block diffusion, or ``None``.
        after: those after, int64 [B, A], or ``None``.
    """

    tokens: Tensor
    block_size: int | None
    after: Tensor | None = None

    exact: ClassVar[bool] = True

    @property
    def length(self) -> int:
        """P."""
        return self.tokens.shape[1]

    def select(self, rows: Tensor) -> TokenPrefix:
        """Return the tokens of the sequences `rows` (int64 [R], repeats allowed)."""
        return replace(self, tokens=self.tokens[rows], after=None if self.after is None else self.after[rows])

    def around(self, x_t: Tensor) -> Tensor:
        """Return the whole text, int64 [B, P + L + A], for x_t [B, L]."""
        parts = [self.tokens, x_t] if self.after is None else [self.tokens, x_t, self.after]
        return torch.cat(parts, dim=1)


class RereadsPrefix:
    """`prefill` of a denoiser that keeps no activations: every call reads the prefix again."""

    supports_cache: bool = False

    def prefill(self, tokens: Tensor, block_size: int | None = None, cache: Cache | None = None) -> Cache:
        """Return the tokens so far, see :class:`dlmkit.types.Denoiser`."""
        if cache is None:
            return TokenPrefix(tokens, block_size)
        assert isinstance(cache, TokenPrefix)
        assert cache.after is None, "what is frozen is no prefix"
        return TokenPrefix(torch.cat([cache.tokens, tokens], dim=1), cache.block_size)

    def freeze(self, tokens: Tensor, t: Tensor, start: int, stop: int, around: str) -> Cache:
        """Return the tokens around the run, see :class:`dlmkit.types.Denoiser`; exact, since they are read again."""
        return tokens_around(tokens, start, stop, around)


AROUND = ("prefix", "both")
"""What `freeze` may keep: what is before a run of tokens, or what is after it too."""


def tokens_around(tokens: Tensor, start: int, stop: int, around: str) -> TokenPrefix:
    """Return what `freeze` keeps of tokens [B, L] around those at [start, stop).

    Raises:
        ValueError: an unknown `around`, or a run that is empty, is not inside of the text, or does not end with it.
    """
    length = tokens.shape[1]
    if around not in AROUND:
        raise ValueError(f"around {around!r} is unknown: choose one of {', '.join(AROUND)}")
    if not 0 <= start < stop <= length:
        raise ValueError(
            f"tokens {start} to {stop} are not a run inside of {length}: give 0 <= start < stop <= {length}"
        )
    if around == "prefix" and stop != length:
        raise ValueError(
            f"with around=prefix the run ends with the text: give stop={length}, not {stop}, or around=both"
        )
    return TokenPrefix(tokens[:, :start], None, tokens[:, stop:] if around == "both" else None)


def expand_prefix(inputs: NetworkInput) -> NetworkInput:
    """Return an input whose x_t contains the tokens of `inputs.cache`; [B, P + L + A].

    Its prediction has P + L + A positions, of which those from P to P + L are for `inputs.x_t`. Unchanged without a
    cache.
    """
    cache = inputs.cache
    if cache is None:
        return inputs
    assert isinstance(cache, TokenPrefix), "this denoiser made no such cache"
    tokens = cache.around(inputs.x_t)
    context = None if cache.block_size is None else Context(tokens, cache.block_size, last=True)
    return replace(inputs, x_t=tokens, context=context, cache=None)
