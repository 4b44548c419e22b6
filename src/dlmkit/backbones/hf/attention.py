"""Attention functions of the kit that transformers models call by name."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from dlmkit.backbones.tiles import attend_in_tiles, tiled_form

TILED = "dlmkit_tiled_sdpa"
"""Name of `sdpa_in_tiles` in a model's configuration."""


def sdpa_in_tiles(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **keywords: Any
) -> tuple[Tensor, None]:
    """Return transformers' sdpa attention, [B, Q, H, d] and no weights, in tiles where the mask has them.

    Arguments are those of its attention functions: the layer; query, key and value [B, H, Q, d]; the mask.
    """
    mask = tiled_form(attention_mask)
    if mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **keywords)

    def attend(query: Tensor, key: Tensor, value: Tensor, part: Tensor) -> Tensor:
        return sdpa_attention_forward(module, query, key, value, part, **keywords)[0].transpose(1, 2)

    return attend_in_tiles(attend, query, key, value, mask).transpose(1, 2), None


AttentionInterface.register(TILED, sdpa_in_tiles)
