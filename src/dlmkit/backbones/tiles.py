"""Attention in tiles: each group of queries reads only the keys that one of them attends to.

A dense mask makes a kernel compute the pairs that it hides. In a pass of block diffusion these are most of them.
Shapes: B sequences, H heads, Q positions, d = D / H; heads of keys and values may be fewer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

TILE_QUERIES = 64
"""Queries of a tile."""

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Attention of query, key and value, each [B, H, ., d], under a mask bool [1 or B, 1, ., .]; as the query is."""


@dataclass(frozen=True)
class Tile:
    """Queries, and runs of keys that contain all that they attend to."""

    queries: slice
    keys: tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class TiledMask:
    """The tiles of a mask, with the part of the mask of each, bool [1 or B, 1, queries, keys]."""

    tiles: tuple[Tile, ...]
    parts: tuple[Tensor, ...]


_KNOWN: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Tiled masks by the dense mask [1 or B, 1, Q, Q] that a transformers model hands to its layers."""


def tiles_of(visible: Tensor) -> tuple[Tile, ...] | None:
    """Return the tiles of a mask, bool [Q, Q]; ``None`` where it is too small to gain from them."""
    size = visible.shape[0]
    if size <= 2 * TILE_QUERIES:
        return None
    groups = (slice(start, min(start + TILE_QUERIES, size)) for start in range(0, size, TILE_QUERIES))
    return tuple(Tile(queries, _runs(visible[queries].any(0))) for queries in groups)


def tiled_mask(visible: Tensor, tiles: tuple[Tile, ...]) -> TiledMask:
    """Return the parts of a mask, bool [1 or B, 1, Q, Q], that hides everything outside of the tiles."""
    parts = (
        torch.cat([visible[:, :, tile.queries, keys] for keys in tile.keys], dim=-1).contiguous() for tile in tiles
    )
    tiled = TiledMask(tiles, tuple(parts))
    _KNOWN[visible] = tiled
    return tiled


def tiled_form(visible: Tensor | None) -> TiledMask | None:
    """Return what `tiled_mask` made of this very tensor, or ``None``."""
    return None if visible is None else _KNOWN.get(visible)


def attend_in_tiles(attend: Attend, query: Tensor, key: Tensor, value: Tensor, mask: TiledMask) -> Tensor:
    """Return the attention of query, key and value [B, H, Q, d] under the mask, [B, H, Q, d]."""
    queries = query.split([part.shape[-2] for part in mask.parts], dim=2)
    keys, values = (_TakeKeys.apply(each, mask.tiles) for each in (key, value))
    mixed = [attend(*tile) for tile in zip(queries, keys, values, mask.parts, strict=True)]
    return torch.cat(mixed, dim=2)


class _TakeKeys(torch.autograd.Function):
    """The keys [B, H, ., d] of each tile; gradients are added into one tensor, not into a tensor for each slice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tiles: tuple[Tile, ...]) -> tuple[Tensor, ...]:
        ctx.tiles, ctx.shape = tiles, x.shape
        return tuple(torch.cat([x[:, :, run] for run in tile.keys], dim=2) for tile in tiles)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].new_zeros(ctx.shape)
        for tile, grad in zip(ctx.tiles, grads, strict=True):
            start = 0
            for run in tile.keys:
                stop = start + run.stop - run.start
                total[:, :, run] += grad[:, :, start:stop]
                start = stop
        return total, None


def _runs(needed: Tensor) -> tuple[slice, ...]:
    """Return the runs of True in a bool [Q]."""
    padded = torch.nn.functional.pad(needed.int(), (1, 1))
    edges = padded.diff().nonzero()[:, 0].tolist()
    return tuple(slice(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True))
