"""Keys and values in the form of transformers' caches, and back."""

from __future__ import annotations

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from dlmkit.backbones.kv_cache import KeyValues, Stored


def dynamic_cache(stored: Stored | None) -> DynamicCache:
    """Return a new cache with what is stored, which the model extends without writing to it.

    Made without the model's configuration, from which transformers would make layers that keep a window alone.
    """
    cache = DynamicCache()
    for keys, values in () if stored is None else stored.layers:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def layers_of(cache: DynamicCache) -> tuple[KeyValues, ...]:
    """Return the keys and values of each layer after a pass."""
    layers = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        layers.append(KeyValues(layer.keys, layer.values))
    return tuple(layers)
