"""Attention masks, as one boolean tensor or none at all, and the kernels that apply them.

A mask combines causality, annealing, packed documents and the blocks of block diffusion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from dlmkit.backbones.tiles import Tile, TiledMask, attend_in_tiles, tiled_mask
from dlmkit.types import Attention

FLEX = "flex_attention"
TILE = 128
"""Side of the tiles of queries and keys that flex attention computes or skips."""


@dataclass(frozen=True, eq=False)
class Mask:
    """A boolean attention mask, with the kernel-specific forms computed on first use and cached on it.

    So a mask that is the same at every step, such as a block layout's, is turned into a flex mask once.

    Attributes:
        visible: bool [1 or B, 1, Q, K], True where query (row) attends to key (column).
        positions: int64 [Q] or [B, Q], position in the text of each row.
        tiles: outside of which nothing is visible; ``None`` where the kernel takes the mask as a whole.
        key_positions: int64 [K], that of each column; ``None`` where columns are as the rows.
    """

    visible: Tensor
    positions: Tensor
    tiles: tuple[Tile, ...] | None = None
    key_positions: Tensor | None = None
    _windowed: dict[tuple[int, bool], Mask] = field(default_factory=dict, repr=False)

    @cached_property
    def flex(self) -> BlockMask:
        """The mask as a BlockMask of flex attention."""
        return flex_mask(self.visible)

    @cached_property
    def tiled(self) -> TiledMask | None:
        """The mask in its tiles."""
        return None if self.tiles is None else tiled_mask(self.visible, self.tiles)

    def windowed(self, width: int, causal_past: bool) -> Mask:
        """Return this mask restricted to a window, the same object for the same window.

        Args:
            width: how many positions back and ahead a query attends.
            causal_past: whether the window reaches width - 1 positions back, as in causal attention, rather than width.
        """
        if (width, causal_past) not in self._windowed:
            keys = self.positions if self.key_positions is None else self.key_positions
            back = self.positions[..., :, None] - keys[..., None, :]
            back = back[:, None] if back.ndim == 3 else back
            past = back < width if causal_past else back <= width
            visible = self.visible & past & (-back <= width)
            self._windowed[width, causal_past] = Mask(visible, self.positions, self.tiles, self.key_positions)
        return self._windowed[width, causal_past]


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # cached: steps with gradients use it too, whatever call comes first
def plain_mask(length: int, causal: bool, device: torch.device) -> Mask:
    """Return the full mask of `length` positions, or with `causal` the lower triangle.

    It is for kernels that need an explicit mask; the others have a faster flag for these two.
    """
    visible = torch.ones(1, 1, length, length, dtype=torch.bool, device=device)
    return Mask(visible.tril() if causal else visible, torch.arange(length, device=device))


def attention_mask(
    length: int,
    device: torch.device | str,
    *,
    causal: bool,
    segments: Tensor | None = None,
    visible: Tensor | None = None,
) -> Tensor | None:
    """Return bool [1 or B, 1, L, L], True where query (row) attends to key (column), or ``None``.

    ``None`` means that the plain kernel suffices: attention is full, or, with ``causal``, causal (the caller then sets
    its kernel's causal flag, which is faster than any mask).

    Args:
        length: L.
        device: of the mask.
        causal: mask the future.
        segments: int64 [B, L]; positions of different documents do not attend to each other.
        visible: bool [L, L]; pairs that attend besides the causal ones (attention-mask annealing).
    """
    if segments is None and visible is None:
        return None
    mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=device)
    if causal or visible is not None:
        mask = mask.tril()
    if visible is not None:
        mask = mask | visible
    if segments is not None:
        mask = mask & (segments[:, None, :, None] == segments[:, None, None, :])
    return mask


SHAPES = ("bernoulli", "blocks")
"""Shapes of annealing: (query, key) pairs at random, or blocks that grow from one token to the whole length."""


def annealed_visibility(length: int, attention: Attention, device: torch.device | str) -> Tensor | None:
    """Return the pairs that attend besides the causal ones, bool [L, L], or ``None`` for full attention.

    Source: arXiv 2410.17891, section 3.2 (attention mask annealing): causal OR Bernoulli(ratio). "blocks" is
    deterministic: tokens attend to each other inside blocks of max(1, round(ratio * L)) tokens, as in block diffusion
    (arXiv 2503.09573).

    Raises:
        ValueError: ratio outside [0, 1], or an unknown shape.
    """
    ratio = attention.ratio
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"attention ratio {ratio} is outside [0, 1]: give the share of future positions to attend to")
    if attention.shape not in SHAPES:
        raise ValueError(f"annealing shape {attention.shape!r} is unknown: choose one of {', '.join(SHAPES)}")
    if ratio == 1.0:
        return None
    if attention.shape == "blocks":
        block = torch.arange(length, device=device) // max(1, round(ratio * length))
        return block[:, None] == block[None, :]
    generator = torch.Generator().manual_seed(attention.seed)
    # Drawn on the CPU, so that every rank and every kind of device has the same mask.
    return (torch.rand(length, length, generator=generator) < ratio).to(device)


@torch.inference_mode(False)  # cached: steps with gradients use it too, whatever call comes first
def flex_mask(mask: Tensor) -> BlockMask:
    """Return a mask (bool [1 or B, 1, Q, K]) for flex attention, whose kernel skips tiles that are masked entirely."""
    batch, _, num_queries, num_keys = mask.shape
    if mask.device.type == "cpu":
        mask = _in_whole_tiles(mask)

    def of_all(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask[0, 0, query, key]

    def of_each(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask[b, 0, query, key]

    # Two functions, and no batch size inside them: the kernel is compiled for each function and each number in it.
    visible, rows = (of_each, batch) if batch > 1 else (of_all, None)
    return create_block_mask(visible, rows, None, num_queries, num_keys, device=str(mask.device))


def _in_whole_tiles(mask: Tensor) -> Tensor:
    """Return the mask padded with masked rows and columns to a multiple of TILE, its sizes static for the compiler.

    With a captured tensor of dynamic size, which a second length makes it, torch 2.13 generates C++ that does not
    compile. In whole tiles lengths seldom differ, so that there are few recompilations.
    """
    padded = F.pad(mask, (0, -mask.shape[-1] % TILE, 0, -mask.shape[-2] % TILE))
    torch._dynamo.mark_static(padded)
    return padded


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Mask | None, dropout: float, causal: bool) -> Tensor:
    """Return torch's scaled_dot_product_attention, [B, H, Q, D / H], in tiles where the mask has them.

    Without a mask attention is full, or `causal`: the kernel then needs none.
    """
    attend = F.scaled_dot_product_attention
    if mask is None:
        return attend(query, key, value, dropout_p=dropout, is_causal=causal)
    if mask.tiled is None:
        return attend(query, key, value, mask.visible, dropout)
    return attend_in_tiles(partial(attend, dropout_p=dropout), query, key, value, mask.tiled)


def flex(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
    """Return compiled flex attention, [B, H, Q, D / H] as query, key and value are.

    Raises:
        ValueError: gradients are required on a device without a backward pass, see `check_flex_trains`.
    """
    check_flex_trains(query.requires_grad, query.device)
    return _compiled(query.device.type)(query, key, value, mask.flex)


def check_flex_trains(requires_grad: bool, device: torch.device) -> None:
    """Raise ValueError when flex attention requires gradients on a device for which torch has no backward pass."""
    if requires_grad and device.type in ("cpu", "mps"):
        raise ValueError(
            f"attention flex_attention has no backward pass on this device ({device.type}): train with"
            " backbone.attention=sdpa, which reads the same weights and masks, or on a GPU"
        )


@cache
def _compiled(device_type: str) -> Callable[[Tensor, Tensor, Tensor, BlockMask], Tensor]:
    """Compile flex attention; uncompiled it would materialise all scores.

    The compiled function is the kit's own, since torch limits recompilations per function, and transformers compiles
    torch's.
    """

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask) -> Tensor:
        mixed = flex_attention(query, key, value, block_mask=mask)
        assert isinstance(mixed, Tensor)  # a pair only with return_lse
        return mixed

    # A CPU only evaluates and samples, at many lengths; a GPU trains at one, and static shapes are faster.
    return torch.compile(attend, dynamic=True if device_type == "cpu" else None)
