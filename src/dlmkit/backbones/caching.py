"""Networks that keep keys and values of a clean prefix."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from dlmkit.backbones.base import Backbone
from dlmkit.backbones.cached_inputs import input_behind, num_kept, prefix_input, reads_stored
from dlmkit.backbones.inputs import TrunkInput
from dlmkit.backbones.kv_cache import KeyValueCache, KeyValues, Stored
from dlmkit.prefix import TokenPrefix
from dlmkit.types import Cache, NetworkInput


class States(NamedTuple):
    """What a pass through the trunk computed.

    Attributes:
        hidden: input of the head at each of the M inputs, [B, M, D].
        layers: keys and values of each layer, those of the past first; empty unless they were asked for.
    """

    hidden: Tensor
    layers: tuple[KeyValues, ...]


class CachingBackbone(Backbone):
    """A backbone whose `prefill` keeps keys and values, where predictions with them are exact.

    So they are behind the clean prefix of a causal network, and in block diffusion, where no clean position attends to
    a noisy one. A bidirectional network without blocks reads the prefix again: there every position attends to all.
    """

    supports_cache = True

    @abstractmethod
    def run_trunk(self, trunk: TrunkInput, keep: bool = False) -> States:
        """Return the states at the inputs, which attend to `trunk.past` too; with `keep` also keys and values."""

    @property
    def may_cache(self) -> bool:
        """Whether passes in the present mode may read and keep keys and values."""
        return self.supports_cache

    def prefill(self, tokens: Tensor, block_size: int | None = None, cache: Cache | None = None) -> Cache:
        """Return the cache of `cache` followed by `tokens` (int64 [B, P]), see :class:`dlmkit.types.Denoiser`.

        Only positions that `cache` has not are computed, and it stays as it is.
        """
        earlier = cache if isinstance(cache, KeyValueCache) else None
        text = super().prefill(tokens, block_size, cache if earlier is None else earlier.text)
        assert isinstance(text, TokenPrefix)
        if not self.may_cache or self.causal != (text.block_size is None):
            return text
        self.check_length(text.length)
        stored = None if earlier is None else earlier.stored
        trunk = prefix_input(text, stored, self.alignment)
        if trunk is not None:
            layers = self.run_trunk(trunk, keep=True).layers
            before = [] if stored is None else [stored.positions]
            stored = Stored(torch.cat([*before, trunk.positions]), layers)
        return KeyValueCache(text, stored, num_kept(text, self.alignment), exact=True)

    def trunk_input(self, inputs: NetworkInput) -> TrunkInput:
        """Return what the trunk reads: behind what is stored the new positions alone. See :class:`Backbone`."""
        cache = inputs.cache
        if not isinstance(cache, KeyValueCache):
            return super().trunk_input(inputs)
        if not self.may_cache or not reads_stored(inputs, cache, self.alignment):
            return super().trunk_input(replace(inputs, cache=cache.text))
        trunk = input_behind(inputs, cache, self.alignment)
        self.check_length(trunk.length)
        return trunk
