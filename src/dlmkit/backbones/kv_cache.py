"""Keys and values of input positions, kept from one pass for later ones.

Shapes: B sequences, H heads of keys and values, n positions that are kept, M that a pass reads, d = D / H.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from dlmkit.prefix import TokenPrefix


class KeyValues(NamedTuple):
    """Keys, with their positions' rotation, and values of one layer, each [B, H, n, d]."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class Stored:
    """What is kept of some input positions.

    Attributes:
        positions: int64 [n], positions in the text, a BOS included; on the layers' device.
        layers: of each layer, the keys and values at these positions.
    """

    positions: Tensor
    layers: tuple[KeyValues, ...]


@dataclass(frozen=True, eq=False)
class KeyValueCache:
    """What a network keeps of a text around the tokens that later calls ask about; a :class:`dlmkit.types.Cache`.

    Attributes:
        text: the tokens themselves, for passes that cannot use what is stored.
        stored: keys and values; ``None`` where there are none yet.
        first: the first input position that later calls read; n for a clean prefix.
        num_tokens: how many tokens a call asks about; ``None`` for any number.
        last: the head's input at the last position of a causal prefix, which predicts the token after it, [B, 1, D];
            ``None`` for other networks, and while nothing is stored.
    """

    text: TokenPrefix
    stored: Stored | None
    first: int
    num_tokens: int | None = None
    last: Tensor | None = None

    @property
    def exact(self) -> bool:
        """Whether predictions are those of a pass over all the tokens; not behind what was frozen."""
        return self.num_tokens is None

    @property
    def length(self) -> int:
        """P, tokens of the prefix."""
        return self.text.length

    def select(self, rows: Tensor) -> KeyValueCache:
        """Return the cache of the sequences `rows` (int64 [R], repeats allowed), in that order."""
        stored = self.stored
        if stored is not None:
            layers = tuple(KeyValues(layer.keys[rows], layer.values[rows]) for layer in stored.layers)
            stored = replace(stored, layers=layers)
        last = None if self.last is None else self.last[rows]
        return replace(self, text=self.text.select(rows), stored=stored, last=last)


class Memory:
    """The keys and values of one pass: those of `past`, which stay as they are, followed by those of the pass.

    Args:
        past: of each layer; empty where nothing was kept.
    """

    def __init__(self, past: Sequence[KeyValues]) -> None:
        self.past = past
        self._layers: dict[int, KeyValues] = {}

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> KeyValues:
        """Return what a layer attends to, [B, H, n + M, d], from the keys and values of the pass [B, H, M, d]."""
        extended = KeyValues(keys, values)
        if self.past:
            before = self.past[layer]
            extended = KeyValues(torch.cat([before.keys, keys], dim=2), torch.cat([before.values, values], dim=2))
        self._layers[layer] = extended  # the same again where a layer is recomputed
        return extended

    @property
    def layers(self) -> tuple[KeyValues, ...]:
        """All layers' keys and values after the pass."""
        return tuple(self._layers[layer] for layer in range(len(self._layers)))
