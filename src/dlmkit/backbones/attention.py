"""Which positions see which, as one boolean mask or none at all, and the kernels that obey it.

A mask holds causality, annealing, packed documents and the blocks of block diffusion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

FLEX = "flex_attention"
TILE = 128
"""Queries and keys that flex attention skips, or not, together."""


@dataclass(frozen=True, eq=False)
class Mask:
    """Who sees whom in one pass. What kernels make of it is made when first asked for, and lives as long as the mask.

    So a mask that is the same at every step, such as a block layout's, is turned into a flex mask once.

    Attributes:
        visible: bool [1 or B, 1, Q, Q], True where query (row) may see key (column).
        positions: int64 [Q], where in the text each row and column is.
    """

    visible: Tensor
    positions: Tensor
    _windowed: dict[tuple[int, bool], Mask] = field(default_factory=dict, repr=False)

    @cached_property
    def flex(self) -> BlockMask:
        """The mask as flex attention takes it."""
        return flex_mask(self.visible)

    def windowed(self, width: int, causal_past: bool) -> Mask:
        """Return this mask cut to a window, the same object for the same window.

        Args:
            width: how many positions back and ahead a query sees.
            causal_past: whether `width` counts the query itself on its way back.
        """
        if (width, causal_past) not in self._windowed:
            back = self.positions[:, None] - self.positions[None, :]
            past = back < width if causal_past else back <= width
            self._windowed[width, causal_past] = Mask(self.visible & past & (-back <= width), self.positions)
        return self._windowed[width, causal_past]


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # kept for steps with gradients too, whoever asks first
def plain_mask(length: int, causal: bool, device: torch.device) -> Mask:
    """Return the mask of `length` positions that all see each other, or with `causal` the past and themselves.

    It is for kernels that must be given one; the others have a faster way to say the same.
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
    """Return bool [1 or B, 1, L, L], True where query (row) may see key (column), or ``None``.

    ``None`` means that the plain kernel suffices: everything is visible, or, with ``causal``, the triangle is (the
    caller then asks its kernel for causal attention, which is faster than any mask).

    Args:
        length: L.
        device: where the mask is made.
        causal: hide the future.
        segments: int64 [B, L]; positions of different documents do not see each other.
        visible: bool [L, L]; future positions that are seen although ``causal`` (attention annealing).
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
"""How the future opens: single (query, key) pairs at random, or blocks that grow from one token to the whole length."""


def annealed_visibility(
    length: int, ratio: float, seed: int, device: torch.device | str, shape: str = "bernoulli"
) -> Tensor | None:
    """Return the visible pairs besides the causal ones, bool [L, L], or ``None`` once everything is visible.

    Source: arXiv 2410.17891, section 3.2 (attention mask annealing): visible = causal OR Bernoulli(ratio). "blocks" is
    deterministic: tokens see each other inside blocks of max(1, round(ratio * L)) tokens, as in block diffusion
    (arXiv 2503.09573).

    Raises:
        ValueError: ratio outside [0, 1], or an unknown shape.
    """
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"attention ratio {ratio} is outside [0, 1]: give the share of future positions that are seen")
    if shape not in SHAPES:
        raise ValueError(f"annealing shape {shape!r} is unknown: choose one of {', '.join(SHAPES)}")
    if ratio == 1.0:
        return None
    if shape == "blocks":
        block = torch.arange(length, device=device) // max(1, round(ratio * length))
        return block[:, None] == block[None, :]
    generator = torch.Generator().manual_seed(seed)
    # Drawn on the CPU, so that every rank and every kind of device sees the same mask.
    return (torch.rand(length, length, generator=generator) < ratio).to(device)


@torch.inference_mode(False)  # a kept mask serves steps with gradients too, whoever asks first
def flex_mask(mask: Tensor) -> BlockMask:
    """Return a mask (bool [1 or B, 1, L, L]) for flex attention, whose kernel skips blocks that are hidden whole."""
    batch, _, length, _ = mask.shape
    if mask.device.type == "cpu":
        mask = _in_whole_tiles(mask)

    def of_all(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask[0, 0, query, key]

    def of_each(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask[b, 0, query, key]

    # Two functions, and no batch size inside them: the kernel is compiled for each function and each number in it.
    visible, rows = (of_each, batch) if batch > 1 else (of_all, None)
    return create_block_mask(visible, rows, None, length, length, device=str(mask.device))


def _in_whole_tiles(mask: Tensor) -> Tensor:
    """Return the mask with hidden rows and columns up to a multiple of TILE, as a tensor whose sizes are compiled in.

    Of a captured tensor whose sizes are left open torch 2.13 writes C++ that does not compile, as it does once a
    second length comes along. In whole tiles lengths seldom differ, so that there is little to compile anew.
    """
    missing = -mask.shape[-1] % TILE
    padded = F.pad(mask, (0, missing, 0, missing))
    torch._dynamo.mark_static(padded)
    return padded


def flex(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
    """Return compiled flex attention, [B, H, Q, D / H] as query, key and value are.

    Raises:
        ValueError: a gradient is wanted where there is none, see `check_flex_trains`.
    """
    check_flex_trains(query.requires_grad, query.device)
    return _compiled(query.device.type)(query, key, value, mask.flex)


def check_flex_trains(wants_gradient: bool, device: torch.device) -> None:
    """Raise ValueError when flex attention is to give gradients on a device for which torch has no backward pass."""
    if wants_gradient and device.type in ("cpu", "mps"):
        raise ValueError(
            f"attention flex_attention has no backward pass on this device ({device.type}): train with"
            " backbone.attention=sdpa, which reads the same weights and masks, or on a GPU"
        )


@cache
def _compiled(device_type: str) -> Callable[[Tensor, Tensor, Tensor, BlockMask], Tensor]:
    """Compile flex attention; as it stands it would write out all scores.

    Of a function of the kit's own, since torch counts compilations by function, and transformers compiles torch's.
    """

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask) -> Tensor:
        mixed = flex_attention(query, key, value, block_mask=mask)
        assert isinstance(mixed, Tensor)  # a pair only where more is asked for
        return mixed

    # A CPU only evaluates and samples, at many lengths; a GPU trains at one, and gains from knowing it.
    return torch.compile(attend, dynamic=True if device_type == "cpu" else None)
