"""From a network input to what a transformer's trunk reads: ids, positions, times and the attention mask."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dlmkit.backbones.alignment import Alignment
from dlmkit.backbones.attention import Mask, annealed_visibility, attention_mask, plain_mask
from dlmkit.backbones.block_layout import block_layout
from dlmkit.backbones.kv_cache import Stored
from dlmkit.backbones.unread import Kept, kept_mask, kept_slots
from dlmkit.prefix import expand_prefix
from dlmkit.types import Attention, Context, NetworkInput


@dataclass(frozen=True)
class TrunkInput:
    """What a network's trunk reads. M inputs: the tokens, a BOS, and with clean context the clean copies beside them.

    L counts the tokens of a cache here, unlike in `NetworkInput`; N of them are predicted.

    Attributes:
        ids: int64 [B, M].
        positions: int64 [M]; 0 .. M - 1, or with clean context those of the text, some of them twice; [B, M] where
            sequences leave out blocks that are not read.
        t: float64 [B]; with clean context [B, M], 0 at context positions.
        mask: attention mask [1 or B, 1, M, M], or ``None`` (see `attention_mask`). With clean context, and neither
            documents nor annealing, the same object at every step.
        causal_window: whether a sliding window of w reaches w - 1 positions back (causal attention) rather than w.
        alignment: of inputs and outputs.
        slots: int64 [N] or [B, N], which of the M inputs has the output that predicts each token, 0 where none has;
            ``None``: see `Alignment.outputs`.
        length: L, tokens of the text.
        predicted: which of them are predicted.
        past: keys and values of positions that are attended to beside the M inputs, as the first columns of the mask.
        known: outputs that come before those of the M inputs, which may then be none, [B, 1, D]; ``None`` without any.
    """

    ids: Tensor
    positions: Tensor
    t: Tensor
    mask: Mask | None
    causal_window: bool
    alignment: Alignment
    slots: Tensor | None
    length: int
    predicted: slice
    past: Stored | None = None
    known: Tensor | None = None

    @property
    def causal(self) -> bool:
        """Whether attention is causal where there is no mask; else it is full, to everything that is stored too."""
        return self.alignment.causal and self.past is None

    def whole_mask(self) -> Mask:
        """Return the mask that stands for none, for kernels that need one."""
        device = self.ids.device
        if self.past is None:
            return plain_mask(self.ids.shape[1], self.causal, device)
        keys = torch.cat([self.past.positions, self.positions])
        visible = torch.ones(1, 1, len(self.positions), len(keys), dtype=torch.bool, device=device)
        return Mask(visible, self.positions, key_positions=keys)

    def outputs(self, hidden: Tensor) -> Tensor:
        """Return hidden states [B, N, D] whose rows predict the tokens that are asked about, from outputs [B, M, D]."""
        slots = self.slots
        if self.known is not None:
            hidden = torch.cat([self.known, hidden], dim=1)
        if slots is not None:
            if slots.ndim == 1:
                return hidden[:, slots]
            return hidden.gather(1, slots[:, :, None].expand(-1, -1, hidden.shape[2]))
        return self.alignment.outputs(hidden, self.length)[:, self.predicted]


def trunk_input(inputs: NetworkInput, alignment: Alignment) -> TrunkInput:
    """Return what the trunk reads for a network input.

    Args:
        inputs: x_t with its times, documents, clean context, attention and prefix.
        alignment: of the network.
    """
    before = 0 if inputs.cache is None else inputs.cache.length
    predicted = slice(before, before + inputs.x_t.shape[1])
    inputs = expand_prefix(inputs)
    context = inputs.context
    # One block has no context: the plain pass, with the plain kernel.
    if context is None or context.block_size >= inputs.x_t.shape[1]:
        return _plain(inputs, alignment, predicted)
    return _with_context(inputs, context, alignment, predicted)


def _plain(inputs: NetworkInput, alignment: Alignment, predicted: slice) -> TrunkInput:
    ids, segments = alignment.ids(inputs.x_t), alignment.segments(inputs.segments)
    visible = _annealed(inputs.attention, ids, alignment)
    mask = attention_mask(ids.shape[1], ids.device, causal=alignment.causal, segments=segments, visible=visible)
    positions = torch.arange(ids.shape[1], device=ids.device)
    return TrunkInput(
        ids=ids,
        positions=positions,
        t=inputs.t if inputs.t.ndim == 1 else inputs.t[:, 0],
        mask=None if mask is None else Mask(mask, positions),
        causal_window=_causal_window(inputs.attention, alignment),
        alignment=alignment,
        slots=None,
        length=inputs.x_t.shape[1],
        predicted=predicted,
    )


def _with_context(inputs: NetworkInput, context: Context, alignment: Alignment, predicted: slice) -> TrunkInput:
    """Return the pass over [x_t | x_0] of block diffusion, see :mod:`dlmkit.backbones.block_layout`."""
    noisy, segments, length = alignment.ids(inputs.x_t), alignment.segments(inputs.segments), inputs.x_t.shape[1]
    layout = block_layout(
        length, context.block_size, alignment.shift, alignment.has_bos, context.last, inputs.x_t.device
    )
    at = layout.positions
    mask = layout.mask.visible
    visible = _annealed(inputs.attention, noisy, alignment)
    if visible is not None:  # annealing: of the pairs that are not causal, only those that were drawn
        mask = mask & ((at[None, :] <= at[:, None]) | visible[at][:, at])
    if segments is not None:
        mask = mask & (segments[:, at, None] == segments[:, None, at])[:, None]
    ids = torch.where(layout.clean, alignment.ids(context.tokens)[:, at], noisy[:, at])
    t = inputs.t[:, None].expand(ids.shape) if inputs.t.ndim == 1 else inputs.t[:, layout.blocks]
    trunk = TrunkInput(
        ids=ids,
        positions=at,
        t=t.masked_fill(layout.is_context, 0.0),
        mask=layout.mask if mask is layout.mask.visible else Mask(mask, at, layout.mask.tiles),
        causal_window=_causal_window(inputs.attention, alignment),
        alignment=alignment,
        slots=layout.outputs[predicted],
        length=length,
        predicted=predicted,
    )
    # Where a mask has tiles: on a CPU, and long enough. On a GPU shapes had better not change from step to step.
    if context.read is None or layout.mask.tiles is None:
        return trunk
    return _without_unread(trunk, kept_slots(layout, context.read))


def _without_unread(trunk: TrunkInput, kept: Kept | None) -> TrunkInput:
    """Return the input without noisy blocks whose predictions are not read."""
    if kept is None:
        return trunk
    assert trunk.mask is not None
    mask = kept_mask(trunk.mask, kept)
    ids, t = trunk.ids.gather(1, kept.slots), trunk.t.gather(1, kept.slots)
    return replace(trunk, ids=ids, positions=mask.positions, t=t, mask=mask, slots=kept.outputs)


def _annealed(attention: Attention, ids: Tensor, alignment: Alignment) -> Tensor | None:
    """Return the (query, key) pairs that attend besides the causal ones, bool [M, M]; ``None`` for all pairs."""
    return None if alignment.causal else annealed_visibility(ids.shape[1], attention, ids.device)


def _causal_window(attention: Attention, alignment: Alignment) -> bool:
    return alignment.causal or attention.ratio < 1.0
