"""A pass without the noisy blocks whose predictions are not read: the others are as they were."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dlmkit.backbones import tiles
from dlmkit.backbones.base import Backbone
from dlmkit.backbones.block_layout import block_layout
from dlmkit.objectives.block import BlockElbo
from dlmkit.objectives.masked import MaskedElbo
from dlmkit.processes.absorbing import Absorbing
from dlmkit.schedules.linear import Linear
from dlmkit.step import losses
from dlmkit.types import Attention, Context, NetworkInput, Noised
from networks import MASK, V, network, some_tokens

LENGTH = 12
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 7, [0] * 2 + [1] * 4 + [2] * 6])


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tiles, "TILE_QUERIES", 7)
    block_layout.cache_clear()
    yield
    block_layout.cache_clear()


def some_read(block_size: int) -> Tensor:
    """Predictions in two blocks of one sequence and in one of the other, not the same ones."""
    read = torch.zeros(2, LENGTH, dtype=torch.bool)
    read[0, block_size] = read[0, -1] = read[1, 2 * block_size] = True
    return read


def inputs_of(block_size: int, segments: Tensor | None = None, ratio: float = 1.0) -> NetworkInput:
    t = torch.rand(2, -(-LENGTH // block_size), dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    context = Context(some_tokens(2, LENGTH), block_size)
    return NetworkInput(some_tokens(2, LENGTH, seed=1), t, segments, context, Attention(ratio, seed=3))


@pytest.mark.parametrize("bos", ["prepend", "none"])
@pytest.mark.parametrize("family", ["dit", "gpt2", "llama", "mistral", "gemma3_text", "falcon"])
def test_predictions_that_are_read_do_not_change(family, bos):
    """With positions, windows, documents, annealing and times of blocks; 5 leaves an uneven block."""
    backbone = network(family, "sdpa", bos=bos)
    for inputs in (inputs_of(1), inputs_of(3, DOCUMENTS), inputs_of(5), inputs_of(2, ratio=0.4)):
        assert inputs.context is not None
        read = some_read(inputs.context.block_size)
        fewer = replace(inputs, context=replace(inputs.context, read=read))
        with torch.no_grad():
            whole, kept = backbone(inputs).hidden, backbone(fewer).hidden
        assert kept.shape == whole.shape
        torch.testing.assert_close(kept[read], whole[read], rtol=1e-4, atol=1e-5)
        fewer_slots = backbone.trunk_input(fewer).ids.shape[1] < backbone.trunk_input(inputs).ids.shape[1]
        assert fewer_slots or inputs.context.block_size == 5  # blocks of several sizes are all kept


def loss_and_gradients(backbone: Backbone, noised: Noised, block_size: int) -> tuple[Tensor, list[Tensor]]:
    objective = BlockElbo(block_size, MaskedElbo())
    result = losses(objective, Absorbing(Linear(), V, MASK), backbone, noised)
    used = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(result.loss.sum(), used, allow_unused=True)
    return result.nll, [gradient for gradient in gradients if gradient is not None]


@pytest.mark.parametrize("family", ["dit", "gpt2"])
def test_the_step_leaves_blocks_without_a_mask_out(family, monkeypatch):
    backbone = network(family, "sdpa")
    x_0 = some_tokens(2, LENGTH)
    x_0[x_0 == MASK] = 0
    x_t = x_0.clone()
    x_t[0, ::3] = x_t[1, 1] = MASK
    t = torch.full((2, LENGTH), 0.5, dtype=torch.float64)
    noised = Noised(x_0, x_t, t, torch.ones_like(x_0, dtype=torch.bool), torch.ones_like(t))
    lengths: list[int] = []
    hook = backbone.register_forward_pre_hook(
        lambda module, arguments: lengths.append(module.trunk_input(arguments[0]).ids.shape[1])
    )
    mine = loss_and_gradients(backbone, noised, 1)
    monkeypatch.undo()  # without tiles, all blocks are read
    block_layout.cache_clear()
    whole = loss_and_gradients(backbone, noised, 1)
    hook.remove()
    assert lengths[0] < lengths[1]
    torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-4)
