"""Block diffusion: a bound for each block given the clean ones before it, and a pass that attends to nothing else."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dlmkit.backbones import inputs as inputs_module
from dlmkit.backbones.base import Backbone
from dlmkit.backbones.dit import DiT
from dlmkit.backbones.hf.families import FAMILIES
from dlmkit.laws.predictions import TablePrediction
from dlmkit.laws.quadrature import nodes
from dlmkit.laws.source import noised_everywhere, sum_by
from dlmkit.module import DiffusionLM
from dlmkit.objectives.base import Objective
from dlmkit.objectives.block import BlockElbo
from dlmkit.objectives.masked import MaskedElbo
from dlmkit.processes.base import ForwardProcess
from dlmkit.step import losses
from dlmkit.types import FULL_ATTENTION, Attention, Context, NetworkInput, Noised
from laws import parts
from laws.parts import VOCAB_SIZE
from laws.tables import source
from laws.toy_training import ValidationData, assert_same, module, trained, trainer
from networks import BOS, MASK, WITH_COMPILER, V, network, randomised, some_tokens

L = 8
INSIDE = [
    pytest.param(name, process, id=f"{name}-{process}")
    for name, process, schedule in parts.diffusion_triples()
    if schedule == "linear" and parts.objective(name).block_size is None
]

# The objective


def law_exact_in_blocks(objective: Objective, process: ForwardProcess, block_size: int, length: int) -> None:
    """With the exact predictor block b costs -log p(x^b | x^{<b}), for each x: by the chain rule -log p(x) in all."""
    data = source(length)
    for start in range(0, length, block_size):
        end, block = start + block_size, start // block_size
        marginal = data.given(torch.empty(0, dtype=torch.int64), start) if start else None
        prefixes = marginal.sequences if marginal is not None else torch.empty(1, 0, dtype=torch.int64)
        for prefix in prefixes:
            inside = data.given(prefix, end)
            noised, share, sequence = noised_everywhere(inside, process, nodes(process, 48))
            num = len(share)
            x_0, x_t = torch.zeros(2, num, length, dtype=torch.int64)
            x_0[:, :start] = x_t[:, :start] = prefix
            x_0[:, start:end], x_t[:, start:end] = noised.x_0, noised.x_t
            scored = torch.zeros(num, length, dtype=torch.bool)
            scored[:, start:end] = True  # the other blocks are given, so that they have no loss
            t = torch.full((num, length // block_size), 0.5, dtype=torch.float64)
            t[:, block] = noised.t
            table = torch.zeros(num, length, VOCAB_SIZE, dtype=torch.float64)
            table[:, start:end] = inside.exact(objective.parameterization, process, noised.x_t, noised.t).table
            result = objective(TablePrediction(table), Noised(x_0, x_t, t, scored, torch.ones_like(t)), process)
            got = sum_by(share * result.nll.sum(-1), sequence, len(inside.probs))
            torch.testing.assert_close(got, -inside.probs.log(), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("block_size", "length"), [(1, 3), (2, 4), (3, 3)])
@pytest.mark.parametrize(("name", "process"), INSIDE)
def test_bound_is_exact_for_each_sequence(name, process, block_size, length):
    law_exact_in_blocks(BlockElbo(block_size, parts.objective(name)), parts.process(process), block_size, length)


# The pass


def unshifted(attention: str = "sdpa") -> Backbone:
    torch.manual_seed(0)
    backbone = DiT(V, MASK, 16, 16, 2, 2, 8, bos_id=BOS, attention=attention)  # BOS is not read without a shift
    torch.manual_seed(1)
    return randomised(backbone)


def a_network(name: str) -> Backbone:
    """FAMILY, FAMILY-BOS or FAMILY-BOS-KERNEL; "dit" alone has no shift."""
    family, bos, attention = (*name.split("-"), "", "")[:3]
    attention = attention or ("sdpa" if family == "dit" or "sdpa" in FAMILIES[family].kernels else "eager")
    if family == "dit" and not bos:
        return unshifted(attention)
    return network(family, attention, bos=bos or "prepend")


NETWORKS = ["dit", "dit-prepend", "dit-none", "gpt2-prepend", "gpt2-none", "llama-prepend"]
FLEX = [
    pytest.param(name, marks=[WITH_COMPILER])
    for name in ("dit--flex_attention", "dit-prepend-flex_attention", "dit-none-flex_attention")
]
FLEX_HF = [
    pytest.param(name, marks=[WITH_COMPILER]) for name in ("llama-prepend-flex_attention", "qwen3-none-flex_attention")
]
EVERY_NETWORK = pytest.mark.parametrize(
    "name", [*NETWORKS, *sorted(set(FAMILIES) - {"gpt2", "llama"}), *FLEX, *FLEX_HF]
)
SOME_NETWORKS = pytest.mark.parametrize("name", [*NETWORKS, *FLEX, FLEX_HF[0]])
SIZES = pytest.mark.parametrize("block_size", [1, 2, 4])


def times(num: int, block_size: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(num, L // block_size, dtype=torch.float64, generator=generator)


@torch.no_grad()
def hidden(
    backbone: Backbone,
    x_t: Tensor,
    x_0: Tensor,
    block_size: int,
    t: Tensor | None = None,
    segments: Tensor | None = None,
    attention: Attention = FULL_ATTENTION,
    last: bool = False,
) -> Tensor:
    t = times(len(x_t), block_size) if t is None else t
    return backbone(NetworkInput(x_t, t, segments, Context(x_0, block_size, last), attention)).hidden


def first_scored(backbone: Backbone) -> int:
    return 0 if backbone.predicts_first else 1


@SIZES
@EVERY_NETWORK
def test_a_block_is_predicted_as_by_a_network_that_is_causal_over_blocks(name, block_size, monkeypatch):
    """The reference reads clean blocks and then one noisy block, as one text, block after block."""
    backbone = a_network(name)
    x_0, x_t = some_tokens(2, L), some_tokens(2, L, seed=1)
    t = times(2, block_size)
    if name.startswith("dit"):
        backbone.time.down.weight.data.zero_()  # it reads t, and the reference has one t for all
    got = hidden(backbone, x_t, x_0, block_size, t)

    early = 1 if backbone.shift and backbone.bos_id is None else 0  # a block begins at the position that predicts it

    def over_blocks(length: int, attention: Attention, device: torch.device) -> Tensor:
        block = (torch.arange(length) + early) // block_size
        if backbone.shift and backbone.bos_id is not None:  # the last position predicts nothing, and is attended to
            block[-1] = block[-2]
        elif early:
            block[-1] = (length - 1) // block_size
        return block[:, None] >= block[None, :]

    monkeypatch.setattr(inputs_module, "annealed_visibility", over_blocks)
    for start in range(0, L, block_size):
        end = start + block_size
        text = torch.cat([x_0[:, :start], x_t[:, start:end]], 1)
        with torch.no_grad():
            plain = backbone(NetworkInput(text, t[:, start // block_size])).hidden
        here = slice(max(start, first_scored(backbone)), end)
        torch.testing.assert_close(got[:, here], plain[:, here], rtol=1e-4, atol=1e-5)


@SIZES
@SOME_NETWORKS
def test_a_block_depends_neither_on_its_clean_tokens_nor_on_later_blocks(name, block_size):
    law_blocks_apart(a_network(name), block_size)


def law_blocks_apart(backbone: Backbone, block_size: int) -> None:
    x_0, x_t = some_tokens(2, L), some_tokens(2, L, seed=1)
    before = hidden(backbone, x_t, x_0, block_size)
    for i in range(L):
        start = i // block_size * block_size
        end = start + block_size
        other = x_0.clone()
        other[:, i] = (other[:, i] + 1) % V
        changed = (hidden(backbone, x_t, other, block_size) != before).any(-1)
        assert not changed[:, :end].any(), f"clean token {i}"
        assert changed[:, end:].all(), f"clean token {i} has no effect on the blocks after it"
        other = x_t.clone()
        other[:, i] = (other[:, i] + 1) % V
        changed = (hidden(backbone, other, x_0, block_size) != before).any(-1)
        assert not changed[:, :start].any(), f"noisy token {i}"
        assert not changed[:, end:].any(), f"noisy token {i}"
        assert changed[:, max(start, first_scored(backbone)) : end].all(), f"noisy token {i} has no effect on its block"


@SIZES
@SOME_NETWORKS
def test_generation_computes_what_training_does(name, block_size):
    """The last block alone, of a text that ends with it; and behind a prefix of clean blocks that was handed over."""
    backbone = a_network(name)
    x_0, x_t = some_tokens(2, L), some_tokens(2, L, seed=1)
    t = times(2, block_size)
    whole = hidden(backbone, x_t, x_0, block_size, t)
    for start in range(0, L, block_size):
        end = start + block_size
        text = torch.cat([x_0[:, :start], x_t[:, start:end]], 1)
        alone = hidden(backbone, text, text, block_size, t[:, start // block_size], last=True)
        here = slice(max(start, first_scored(backbone)), end)
        torch.testing.assert_close(alone[:, here], whole[:, here], rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            cache = backbone.prefill(x_0[:, :start], block_size)
            behind = backbone(NetworkInput(x_t[:, start:end], t[:, start // block_size], cache=cache)).hidden
        torch.testing.assert_close(behind[:, here.start - start :], alone[:, here], rtol=1e-4, atol=1e-5)


@SOME_NETWORKS
@torch.no_grad()
def test_one_block_is_the_plain_pass(name):
    backbone = a_network(name)
    x_0, x_t = some_tokens(2, L), some_tokens(2, L, seed=1)
    t = times(2, L)
    plain = backbone(NetworkInput(x_t, t[:, 0])).hidden
    assert torch.equal(hidden(backbone, x_t, x_0, L, t), plain)
    noised = Noised(x_0, x_t, t[:, 0], torch.ones_like(x_0, dtype=torch.bool), torch.ones(2, dtype=torch.float64))
    noise = parts.process("absorbing", vocab_size=V, mask_id=MASK)
    one, other = (losses(one, noise, backbone, noised) for one in (BlockElbo(L, MaskedElbo()), MaskedElbo()))
    assert torch.equal(one.loss, other.loss)


@pytest.mark.parametrize("name", ["dit", "gpt2-prepend", "llama-prepend"])
def test_blocks_of_one_token_have_an_exact_likelihood(name):
    """exp(-nll) sums to 1 over all texts, whatever t was: each token is predicted given the clean ones before it."""
    backbone, length = a_network(name), 3
    if name == "dit":
        backbone.time.down.weight.data.zero_()
    texts = torch.cartesian_prod(*[torch.tensor([i for i in range(V) if i != MASK])] * length)
    noise = parts.process("absorbing", vocab_size=V, mask_id=MASK)
    t = torch.rand(len(texts), length, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.1
    everything = torch.ones_like(texts, dtype=torch.bool)
    noised = Noised(texts, torch.full_like(texts, MASK), t, everything, torch.ones_like(t))
    with torch.no_grad():
        nll = losses(BlockElbo(1, MaskedElbo()), noise, backbone, noised).nll
    # A token is masked with probability t and then weighs 1 / t, so the mean over its mask is t times this.
    likelihood = (-(nll * t).sum(-1)).exp()
    assert float(likelihood.sum()) == pytest.approx(1.0, abs=1e-4)


def test_each_block_reads_its_own_time():
    backbone = a_network("dit")
    x_0, x_t = some_tokens(2, L), some_tokens(2, L, seed=1)
    t = times(2, 2)
    before = hidden(backbone, x_t, x_0, 2, t)
    for block in range(4):
        other = t.clone()
        other[:, block] = 0.5
        changed = (hidden(backbone, x_t, x_0, 2, other) != before).any(-1)
        assert changed.view(2, 4, 2).all(-1).nonzero()[:, 1].tolist() == [block, block]
        assert int(changed.sum()) == 4


@SOME_NETWORKS
def test_documents_do_not_leak(name):
    """Tokens 0 to 4 are one document, 5 to 7 another, and blocks have 2."""
    backbone = a_network(name)
    x_0, x_t = some_tokens(2, L), some_tokens(2, L, seed=1)
    segments = (torch.arange(L) > 4).long().expand(2, -1)
    before = hidden(backbone, x_t, x_0, 2, segments=segments)
    for i in range(L):
        changed_0, changed_t = x_0.clone(), x_t.clone()
        changed_0[:, i] = (changed_0[:, i] + 1) % V
        changed_t[:, i] = (changed_t[:, i] + 1) % V
        changed = (hidden(backbone, changed_t, changed_0, 2, segments=segments) != before).any(-1)
        mine = segments[0] == segments[0, i]
        if backbone.shift and i == 4:  # as an input the last token of a document belongs to the next
            mine = segments[0] == 1
        assert not changed[:, ~mine].any(), i


def test_annealing_masks_the_future_inside_a_block():
    backbone = a_network("gpt2-prepend")
    x_0, x_t = some_tokens(2, L), some_tokens(2, L, seed=1)
    before = hidden(backbone, x_t, x_0, 4, attention=Attention(0.0))
    other = x_t.clone()
    other[:, 6] = (other[:, 6] + 1) % V
    changed = (hidden(backbone, other, x_0, 4, attention=Attention(0.0)) != before).any(-1)
    assert changed[0].tolist() == [False] * 7 + [True]


# Training


def in_blocks(block_size: int, bos: str = "prepend") -> DiffusionLM:
    model = module("block", "absorbing", bos=bos)
    model.block_size = block_size
    return model


class Recording(BlockElbo):
    """Keeps the times that it is given."""

    def __call__(self, prediction, noised, process):
        self.times = noised.t
        return super().__call__(prediction, noised, process)


@pytest.mark.parametrize("bos", ["prepend", "none"])
@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_a_step_does_not_move_with_the_micro_batch(block_size, bos):
    whole, *others = (
        trained(in_blocks(block_size, bos), size, count, num_steps=2) for size, count in ((8, 1), (2, 4), (1, 8))
    )
    for other in others:
        assert_same(other, whole)


def test_blocks_of_a_sequence_have_times_of_their_own_and_even_ones():
    model = in_blocks(2)
    model.objective = Recording(2, MaskedElbo())
    trained(model, 8, 1)
    t = model.objective.times
    assert t.shape == (8, 3)
    assert sorted((t * 24).flatten().long().tolist()) == pytest.approx(list(range(24)), abs=1)  # all cells
    for row in t:
        assert all(0.2 < (b - a) % 1 < 0.8 for a, b in pairwise(sorted(row.tolist())))


def test_validation_does_not_move_with_the_micro_batch():
    model, results = in_blocks(2), []
    for size in (10, 3):
        trainer().validate(model, datamodule=ValidationData(size), verbose=False)
        results.append({name: float(value) for name, value in model.trainer.callback_metrics.items()})
    assert results[1] == pytest.approx(results[0], rel=1e-5)
