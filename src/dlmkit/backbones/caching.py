"""Networks that keep keys and values of a clean prefix, or for a while those of noisy tokens."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from dlmkit.backbones.base import Backbone
from dlmkit.backbones.cached_inputs import (
    input_behind,
    num_kept,
    prefix_input,
    reads_stored,
    run_of_positions,
)
from dlmkit.backbones.inputs import TrunkInput
from dlmkit.backbones.kv_cache import KeyValueCache, KeyValues, Stored
from dlmkit.prefix import TokenPrefix, tokens_around
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
    """A backbone whose `prefill` keeps keys and values where predictions with them are exact, and `freeze` always.

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
        assert earlier is None or earlier.exact, "what is frozen is no prefix"
        text = super().prefill(tokens, block_size, cache if earlier is None else earlier.text)
        assert isinstance(text, TokenPrefix)
        if not self.may_cache or self.causal != (text.block_size is None):
            return text
        self.check_length(text.length)
        stored, last = (None, None) if earlier is None else (earlier.stored, earlier.last)
        trunk = prefix_input(text, stored, self.alignment)
        if trunk is not None:
            states = self.run_trunk(trunk, keep=True)
            before = [] if stored is None else [stored.positions]
            stored = Stored(torch.cat([*before, trunk.positions]), states.layers)
            last = states.hidden[:, -1:].clone() if self.causal else None
        return KeyValueCache(text, stored, num_kept(text, self.alignment), last=last)

    def freeze(self, tokens: Tensor, t: Tensor, start: int, stop: int, around: str) -> Cache:
        """Return the keys and values around a run of `tokens`, from one pass. See :class:`dlmkit.types.Denoiser`.

        With a shift the run begins at the input before it, whose output predicts its first token. A causal network
        reads the tokens again: it has `prefill`, which is exact.
        """
        text = tokens_around(tokens, start, stop, around)
        if self.causal or not self.may_cache:
            return text
        trunk = super().trunk_input(NetworkInput(tokens, t))
        first, end = run_of_positions(start, stop, self.alignment)
        kept = torch.cat([trunk.positions[:first], trunk.positions[end:]])
        if len(kept) == 0:
            return text
        layers = self.run_trunk(trunk, keep=True).layers
        outside = tuple(KeyValues(*(each.index_select(2, kept) for each in layer)) for layer in layers)
        return KeyValueCache(text, Stored(kept, outside), first, num_tokens=stop - start)

    def states(self, inputs: NetworkInput) -> Tensor:
        """Return the head's input at the positions of `inputs.x_t`, [B, L, D]."""
        trunk = self.trunk_input(inputs)
        if trunk.known is not None and trunk.ids.shape[1] == 0:
            return trunk.outputs(trunk.known[:, :0])
        return trunk.outputs(self.run_trunk(trunk).hidden)

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
