"""Block diffusion: a bound for each block given the clean ones before it, and a pass in which nothing else is seen."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from dlmkit.backbones.blocks import block_layout
from dlmkit.backbones.families import FAMILIES
from torch import Tensor

from dlmkit.backbones import base
from dlmkit.backbones.attention import Mask
from dlmkit.backbones.base import Backbone
from dlmkit.backbones.dit import DiT
from dlmkit.build import build_module
from dlmkit.config import compose
from dlmkit.laws.samplers import Exact, total_variation
from dlmkit.objectives.base import Objective
from dlmkit.objectives.block import Block
from dlmkit.objectives.masked import Masked
from dlmkit.processes.base import ForwardProcess
from dlmkit.randomness import generator_for
from dlmkit.samplers.ancestral import Ancestral
from dlmkit.samplers.base import generate
from dlmkit.samplers.blockwise import Blockwise
from dlmkit.types import Batch, Canvas, Context, Noised
from laws import parts
from laws.enumeration import (
    TablePredictor,
    all_sequences,
    chi_square_p,
    nodes,
    noised_everywhere,
    random_source,
    sum_by,
)
from laws.parts import MASK_ID, VOCAB_SIZE
from laws.test_backbones import BOS, MASK, WITH_COMPILER, V, network, some_tokens
from laws.test_samplers import counts_of, empty
from laws.toy_training import ValidationData, assert_same, module, trained, trainer

L = 8
INSIDE = [
    pytest.param(name, process, id=f"{name}-{process}")
    for name, process, schedule in parts.diffusion_triples()
    if schedule == "linear" and parts.objective(name).block_size is None
]

# The objective


def law_exact_in_blocks(objective: Objective, process: ForwardProcess, block_size: int, length: int) -> None:
    """With the exact predictor block b costs -log p(x^b | x^{<b}), for each x: by the chain rule -log p(x) in all."""
    data = random_source(length, VOCAB_SIZE, MASK_ID)
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
            scored[:, start:end] = True  # the other blocks are given, so that they cost nothing
            t = torch.full((num, length // block_size), 0.5, dtype=torch.float64)
            t[:, block] = noised.t
            table = torch.zeros(num, length, VOCAB_SIZE, dtype=torch.float64)
            table[:, start:end] = inside.exact(objective.predicts, process, noised.x_t, noised.t).table
            result = objective(TablePredictor(table), Noised(x_0, x_t, t, scored, torch.ones_like(t)), process)
            got = sum_by(share * result.nll.sum(-1), sequence, len(inside.probs))
            torch.testing.assert_close(got, -inside.probs.log(), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("block_size", "length"), [(1, 3), (2, 4), (3, 3)])
@pytest.mark.parametrize(("name", "process"), INSIDE)
def test_bound_is_exact_for_each_sequence(name, process, block_size, length):
    law_exact_in_blocks(Block(block_size, parts.objective(name)), parts.process(process), block_size, length)


def test_blocks_fill_the_length():
    objective = Block(4, Masked())
    assert [objective.num_times(length) for length in (1, 4, 8, 64)] == [1, 1, 2, 16]
    with pytest.raises(ValueError, match=r"length 10 is no multiple of objective\.block_size 4.*such as 8"):
        objective.num_times(10)
    with pytest.raises(ValueError, match="block_size 0"):
        Block(0, Masked())
    with pytest.raises(ValueError, match="within Block"):
        Block(4, objective)


# The pass


def unshifted(attention: str = "sdpa") -> Backbone:
    torch.manual_seed(0)
    backbone = DiT(V, MASK, 16, 16, 2, 2, 8, bos_id=BOS, attention=attention)  # BOS is not read without a shift
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return backbone.eval()


def a_network(name: str) -> Backbone:
    """FAMILY, FAMILY-BOS or FAMILY-BOS-KERNEL; a dit without a word on BOS has no shift."""
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
def hidden(backbone: Backbone, x_t: Tensor, x_0: Tensor, block_size: int, t: Tensor | None = None, **keywords):
    t = times(len(x_t), block_size) if t is None else t
    return backbone(x_t, t, keywords.pop("segments", None), Context(x_0, block_size, **keywords)).hidden


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

    def over_blocks(length: int, device) -> Tensor:
        block = (torch.arange(length) + early) // block_size
        if backbone.shift and backbone.bos_id is not None:  # the last position predicts nothing, and is seen
            block[-1] = block[-2]
        elif early:
            block[-1] = (length - 1) // block_size
        return block[:, None] >= block[None, :]

    monkeypatch.setattr(backbone, "visibility", over_blocks)
    for start in range(0, L, block_size):
        end = start + block_size
        text = torch.cat([x_0[:, :start], x_t[:, start:end]], 1)
        with torch.no_grad():
            plain = backbone(text, t[:, start // block_size]).hidden
        here = slice(max(start, first_scored(backbone)), end)
        torch.testing.assert_close(got[:, here], plain[:, here], rtol=1e-4, atol=1e-5)


@SIZES
@SOME_NETWORKS
def test_a_block_knows_nothing_of_its_clean_tokens_nor_of_later_blocks(name, block_size):
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
        assert changed[:, end:].all(), f"clean token {i} is not seen by the blocks after it"
        other = x_t.clone()
        other[:, i] = (other[:, i] + 1) % V
        changed = (hidden(backbone, other, x_0, block_size) != before).any(-1)
        assert not changed[:, :start].any(), f"noisy token {i}"
        assert not changed[:, end:].any(), f"noisy token {i}"
        assert changed[:, max(start, first_scored(backbone)) : end].all(), f"noisy token {i} is not seen by its block"


@SIZES
@SOME_NETWORKS
def test_generation_reads_what_training_does(name, block_size):
    """The last block alone, of a text that ends with it."""
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


@SOME_NETWORKS
@torch.no_grad()
def test_one_block_is_the_plain_pass(name):
    backbone = a_network(name)
    x_0, x_t = some_tokens(2, L), some_tokens(2, L, seed=1)
    t = times(2, L)
    plain = backbone(x_t, t[:, 0]).hidden
    assert torch.equal(hidden(backbone, x_t, x_0, L, t), plain)
    noised = Noised(x_0, x_t, t[:, 0], torch.ones_like(x_0, dtype=torch.bool), torch.ones(2, dtype=torch.float64))
    noise = parts.process("absorbing", vocab_size=V, mask_id=MASK)
    batch = Batch(x_0, noised.scored)
    one, other = (
        objective(objective.ask(backbone, batch, x_t, noised.t), noised, noise)
        for objective in (Block(L, Masked()), Masked())
    )
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
    objective = Block(1, Masked())
    with torch.no_grad():
        x_t = torch.full_like(texts, MASK)
        prediction = objective.ask(backbone, Batch(texts, everything), x_t, t)
        nll = objective(prediction, Noised(texts, x_t, t, everything, torch.ones_like(t)), noise).nll
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


def test_annealing_hides_the_future_inside_a_block():
    backbone = a_network("gpt2-prepend")
    x_0, x_t = some_tokens(2, L), some_tokens(2, L, seed=1)
    with backbone.attending(0.0):
        before = hidden(backbone, x_t, x_0, 4)
        other = x_t.clone()
        other[:, 6] = (other[:, 6] + 1) % V
        changed = (hidden(backbone, other, x_0, 4) != before).any(-1)
    assert changed[0].tolist() == [False] * 7 + [True]


# Training


class Plain(DiT):
    def forward(self, x_t: Tensor, t: Tensor, segments: Tensor | None = None):
        return super().forward(x_t, t, segments)


def test_a_backbone_that_reads_no_context_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("dlmkit.backbones.dit.DiT", Plain)
    config = compose(["family=block", "backbone=dit_tiny"], tmp_path)
    config.vocab = {"size": 16, "mask_id": 15, "bos_id": 14, "eos_id": 14}
    with pytest.raises(ValueError, match="backbone=plain reads no clean context"):
        build_module(config, None)


def in_blocks(block_size: int, bos: str = "prepend"):
    model = module("masked", "absorbing", bos=bos)
    model.objective = Block(block_size, Masked())
    return model


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
    seen = []
    ask = model.objective.ask
    model.objective.ask = lambda network, batch, x_t, t: (seen.append(t), ask(network, batch, x_t, t))[1]
    trained(model, 8, 1)
    (t,) = seen
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


# The sampler


def blockwise(block_size: int) -> Blockwise:
    return Blockwise(block_size, Ancestral(1.0, None, 1.0))


@pytest.mark.parametrize("process", sorted({name for name, _ in parts.noisy_processes()}))
def test_blocks_of_one_token_are_drawn_exactly_in_one_step_each(process):
    data, noise, num = random_source(3, VOCAB_SIZE, MASK_ID), parts.process(process), 20_000
    canvas = generate(Exact(data, noise), noise, blockwise(1), empty(num), 3, generator_for("cpu", "blocks"))
    assert chi_square_p(counts_of(canvas.tokens), data.joint.flatten() * num) > 1e-6


@pytest.mark.parametrize("process", sorted({name for name, _ in parts.noisy_processes()}))
def test_samples_have_the_datas_distribution(process):
    """Blocks of 2 of 3 tokens, the last one shorter; the bound is that of tests/laws/test_samplers.py."""
    data, noise, num = random_source(3, VOCAB_SIZE, MASK_ID), parts.process(process), 10_000
    canvas = generate(Exact(data, noise), noise, blockwise(2), empty(num), 256, generator_for("cpu", "blocks"))
    spread = (len(data.probs) / num) ** 0.5 / 2
    surprise = (torch.tensor(1e6).log() / (2 * num)) ** 0.5
    assert total_variation(counts_of(canvas.tokens) / num, data.joint.flatten()) < 0.02 + spread + surprise


def test_blocks_are_filled_from_left_to_right_and_given_tokens_stay():
    data, noise, num = random_source(4, VOCAB_SIZE, MASK_ID), parts.process("absorbing"), 100
    fixed = torch.tensor([False, True, False, False]).expand(num, -1)
    canvas = Canvas(torch.full((num, 4), 2), fixed)
    seen = []

    def on_step(index: int, tokens: Tensor) -> None:
        seen.append((tokens == MASK_ID).any(0).tolist())
        assert (tokens[:, 1] == 2).all()

    generate(Exact(data, noise), noise, blockwise(2), canvas, 7, generator_for("cpu", 0), on_step)
    assert len(seen) == 6  # 7 shared by two blocks
    assert seen[2] == [False, False, True, True]
    assert seen[5] == [False] * 4


def test_samples_of_a_network_follow_its_own_likelihood():
    """Blocks of one token: `generate` draws from the distribution that the objective scores."""
    length, num = 2, 20_000
    backbone = DiT(VOCAB_SIZE, MASK_ID, 16, 16, 2, 2, 8, time_conditioned=False)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    noise = parts.process("absorbing")
    texts = all_sequences(length, VOCAB_SIZE)
    texts = texts[(texts != MASK_ID).all(-1)]
    t = torch.ones(len(texts), length, dtype=torch.float64)
    everything = torch.ones_like(texts, dtype=torch.bool)
    x_t = torch.full_like(texts, MASK_ID)
    objective = Block(1, Masked())
    with torch.no_grad():
        prediction = objective.ask(backbone, Batch(texts, everything), x_t, t)
        nll = objective(prediction, Noised(texts, x_t, t, everything, t), noise).nll
    expected = torch.zeros(VOCAB_SIZE**length, dtype=torch.float64)
    expected[texts[:, 0] * VOCAB_SIZE + texts[:, 1]] = (-nll.sum(-1)).double().exp()
    canvas = generate(backbone, noise, blockwise(1), empty(num, length), 2, generator_for("cpu", 3))
    assert chi_square_p(counts_of(canvas.tokens), expected * num) > 1e-6
