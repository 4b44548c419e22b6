"""Attention in tiles is attention under the whole mask, in every family, and skips what the mask hides."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dlmkit.backbones import tiles
from dlmkit.backbones.block_layout import block_layout
from dlmkit.backbones.hf.families import FAMILIES
from dlmkit.types import Attention, Context, NetworkInput
from networks import network, some_tokens

LENGTH = 12
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 7, [0] * 2 + [1] * 4 + [2] * 6])
WITH_TILES = ["dit", *(name for name, family in FAMILIES.items() if family.has_interface and "sdpa" in family.kernels)]


@pytest.fixture(autouse=True)
def fresh_layouts() -> Iterator[None]:
    block_layout.cache_clear()
    yield
    block_layout.cache_clear()


class Pairs(TorchDispatchMode):
    """Counts the calls of attention and the pairs of query and key that they compute."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.pairs = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        if "scaled_dot_product" in name and "backward" not in name:
            self.calls += 1
            self.pairs += args[0].shape[2] * args[1].shape[2]
        return function(*args, **(kwargs or {}))


def a_pass(block_size: int, segments: Tensor | None = None, ratio: float = 1.0) -> NetworkInput:
    t = torch.rand(2, -(-LENGTH // block_size), dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    context = Context(some_tokens(2, LENGTH), block_size)
    return NetworkInput(some_tokens(2, LENGTH, seed=1), t, segments, context, Attention(ratio, seed=3))


def result(family: str, inputs: NetworkInput, bos: str = "prepend") -> tuple[list[Tensor], Pairs]:
    """Hidden states and the gradients of a number that all depend on, and what attention computed."""
    backbone = network(family, "sdpa", bos=bos)
    with Pairs() as counted:
        hidden = backbone(inputs).hidden[:, 1:]
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    used = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad((hidden * weights).sum(), used, allow_unused=True)
    return [hidden.detach(), *(gradient for gradient in gradients if gradient is not None)], counted


@pytest.mark.parametrize("family", WITH_TILES)
def test_tiles_are_the_whole(family, monkeypatch):
    """In every family whose layers call the kit's function by name, documents and annealing included."""
    for inputs in (a_pass(3), a_pass(1, DOCUMENTS), a_pass(5, ratio=0.4)):
        whole, plain = result(family, inputs)
        monkeypatch.setattr(tiles, "TILE_QUERIES", 7)
        block_layout.cache_clear()
        in_tiles, counted = result(family, inputs)
        monkeypatch.undo()
        block_layout.cache_clear()
        assert counted.calls > plain.calls
        assert counted.pairs < 0.8 * plain.pairs
        torch.testing.assert_close(in_tiles, whole, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("block_size", "most"), [(1, 0.35), (4, 0.5), (16, 0.6)])
def test_most_hidden_pairs_are_skipped(block_size, most):
    """At 128 tokens, as tiles are."""
    layout = block_layout(128, block_size, True, True, False, torch.device("cpu"))
    assert layout.mask.tiled is not None
    size = len(layout.positions)
    assert sum(part.numel() for part in layout.mask.tiled.parts) < most * size**2
    seen = torch.zeros(size, size, dtype=torch.bool)
    for tile, part in zip(layout.mask.tiled.tiles, layout.mask.tiled.parts, strict=True):
        seen[tile.queries, torch.cat([torch.arange(run.start, run.stop) for run in tile.keys])] = part[0, 0]
    assert torch.equal(seen, layout.mask.visible[0, 0])


def test_a_mask_of_one_step_is_not_kept():
    known = len(tiles._KNOWN)
    visible = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    tiles.tiled_mask(visible, (tiles.Tile(slice(0, 4), (slice(0, 4),)),))
    assert tiles.tiled_form(visible) is not None
    assert tiles.tiled_form(visible.clone()) is None
    del visible
    assert len(tiles._KNOWN) == known
