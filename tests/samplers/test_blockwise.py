"""Blockwise generation: blocks from left to right, each given the clean ones before it, handed over once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dlmkit.backbones.base import Backbone
from dlmkit.backbones.dit import DiT
from dlmkit.generation import Event, generate, prior_sample
from dlmkit.laws.findings import FALSE_ALARM
from dlmkit.laws.samplers import (
    STEP_BIAS,
    Exact,
    allowed_distance,
    counts_of,
    empty,
    total_variation,
)
from dlmkit.laws.source import all_sequences
from dlmkit.laws.statistics import chi_square_p
from dlmkit.objectives.block import BlockElbo
from dlmkit.objectives.masked import MaskedElbo
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.base import ForwardProcess
from dlmkit.randomness import RowNoise, row_noise
from dlmkit.samplers.ancestral import Ancestral
from dlmkit.samplers.base import Sampler, Step
from dlmkit.samplers.block_by_block import MOST_STEPS
from dlmkit.samplers.blockwise import Blockwise
from dlmkit.step import losses
from dlmkit.types import (
    Cache,
    Canvas,
    ClosedForm,
    Context,
    Denoiser,
    NetworkInput,
    Noised,
    Prediction,
    WeightedNLL,
    WeightedValues,
)
from laws import parts
from laws.parts import MASK_ID, VOCAB_SIZE
from laws.tables import source
from networks import randomised

NOISES = [name for name in parts.names("process") if parts.process(name).has_noise]


def blockwise(block_size: int) -> Blockwise:
    return Blockwise(block_size, Ancestral(1.0, None, 1.0))


def network(vocab_size: int = VOCAB_SIZE, **settings: Any) -> Backbone:
    """A tiny network whose every weight matters."""
    torch.manual_seed(0)
    backbone = DiT(vocab_size, MASK_ID, 16, 16, 2, 2, 8, **settings)
    torch.manual_seed(1)
    return randomised(backbone)


@pytest.mark.parametrize("process", NOISES)
def test_blocks_of_one_token_are_drawn_exactly_in_one_step_each(process):
    data, noise, num = source(), parts.process(process), 20_000
    denoiser = Exact(data, noise, X0LeaveOneOut())
    canvas = generate(denoiser, noise, blockwise(1), empty(noise, num), 3, 11)
    assert chi_square_p(counts_of(canvas.tokens, VOCAB_SIZE), data.joint.flatten() * num) > FALSE_ALARM


@pytest.mark.long
@pytest.mark.parametrize("process", NOISES)
def test_samples_have_the_datas_distribution(process):
    """Blocks of 2 of 3 tokens, the last one shorter."""
    data, noise, num = source(), parts.process(process), 10_000
    denoiser = Exact(data, noise, X0LeaveOneOut())
    canvas = generate(denoiser, noise, blockwise(2), empty(noise, num), 256, 11)
    distance = total_variation(counts_of(canvas.tokens, VOCAB_SIZE) / num, data.joint.flatten())
    assert distance < STEP_BIAS + allowed_distance(len(data.probs), num)


def test_blocks_are_filled_from_left_to_right_and_given_tokens_stay():
    data, noise, num = source(4), parts.process("absorbing"), 100
    fixed = torch.tensor([False, True, False, False]).expand(num, -1)
    canvas = Canvas(torch.full((num, 4), 2), fixed)
    seen = []

    def on_step(event: Event) -> None:
        seen.append((event.after == MASK_ID).any(0).tolist())
        assert (event.after[:, 1] == 2).all()

    denoiser = Exact(data, noise, X0LeaveOneOut())
    generate(denoiser, noise, blockwise(2), canvas, 7, 0, on_step)
    assert len(seen) == 6  # 7 shared by two blocks
    assert seen[2] == [False, False, True, True]
    assert seen[5] == [False] * 4


def test_samples_of_a_network_follow_its_own_likelihood():
    """Blocks of one token: `generate` draws from the distribution that the objective scores."""
    length, num = 2, 20_000
    backbone, noise = network(time_conditioned=False), parts.process("absorbing")
    texts = all_sequences(length, VOCAB_SIZE)
    texts = texts[(texts != MASK_ID).all(-1)]
    t = torch.ones(len(texts), length, dtype=torch.float64)
    noised = Noised(texts, torch.full_like(texts, MASK_ID), t, torch.ones_like(texts, dtype=torch.bool), t)
    with torch.no_grad():
        nll = losses(BlockElbo(1, MaskedElbo()), noise, backbone, noised).nll
    expected = torch.zeros(VOCAB_SIZE**length, dtype=torch.float64)
    expected[texts[:, 0] * VOCAB_SIZE + texts[:, 1]] = (-nll.sum(-1)).double().exp()
    canvas = generate(backbone, noise, blockwise(1), empty(noise, num, length), 2, 3)
    assert chi_square_p(counts_of(canvas.tokens, VOCAB_SIZE), expected * num) > FALSE_ALARM


# The prefix


class LastBlock:
    """A prediction for a whole text, addressed by the positions of its last block."""

    def __init__(self, whole: Prediction, start: int) -> None:
        self.whole, self.start = whole, start

    def logits(self, where: Tensor) -> Tensor:
        return self.whole.logits(self._whole(where))

    def token_log_prob(self, tokens: Tensor, where: Tensor) -> Tensor:
        return self.whole.token_log_prob(torch.nn.functional.pad(tokens, (self.start, 0)), self._whole(where))

    def weighted_nll(self, tokens: Tensor, where: Tensor, weight: Tensor) -> WeightedNLL:
        return self.whole.weighted_nll(torch.nn.functional.pad(tokens, (self.start, 0)), self._whole(where), weight)

    def map_logits(self, function: Callable[..., Tensor], where: Tensor, *arguments: Tensor) -> Tensor:
        return self.whole.map_logits(function, self._whole(where), *arguments)

    def weighted(self, form: ClosedForm, where: Tensor, weight: Tensor, *arguments: Tensor) -> WeightedValues:
        return self.whole.weighted(form, self._whole(where), weight, *arguments)

    def _whole(self, where: Tensor) -> Tensor:
        return torch.nn.functional.pad(where, (self.start, 0))


@torch.no_grad()
def plain_blockwise(
    backbone: Backbone,
    process: ForwardProcess,
    within: Sampler,
    block_size: int,
    canvas: Canvas,
    steps_per_block: int,
    noise: RowNoise,
) -> Tensor:
    """The algorithm as it is written down: each call reads all blocks before the current one again."""
    num, length = canvas.tokens.shape
    tokens = torch.where(canvas.fixed, canvas.tokens, prior_sample(process, length, noise))
    times = within.times(steps_per_block)
    for start in range(0, length, block_size):
        here = slice(start, min(start + block_size, length))

        def denoiser(inputs: NetworkInput, clean: Tensor = tokens[:, :start]) -> Prediction:
            text = torch.cat([clean, inputs.x_t], dim=1)
            context = Context(text, block_size, last=True)
            return LastBlock(backbone(NetworkInput(text, inputs.t, context=context)), clean.shape[1])

        fixed = canvas.fixed[:, here]
        state = within.init(Canvas(tokens[:, here], fixed))
        for index in range(steps_per_block):
            t, s = times[index].repeat(num), times[index + 1].repeat(num)
            numbers = noise.at(step=start // block_size * MOST_STEPS + index, start=start)
            step = Step(index, steps_per_block, t, s, fixed, fixed, numbers)
            done = within.step(denoiser, process, tokens[:, here], step, state)  # type: ignore[arg-type]
            state = done.state
            tokens = torch.cat([tokens[:, :start], done.tokens, tokens[:, here.stop :]], dim=1)
    return tokens


WITHIN = {
    "ancestral": parts.sampler("ancestral"),
    "self_correcting": parts.sampler("self_correcting", num_corrections=3),
}


@pytest.mark.parametrize("settings", [{}, {"shift": True, "bos_id": 0}], ids=["unshifted", "shifted"])
@pytest.mark.parametrize("process", NOISES)
@pytest.mark.parametrize("within", WITHIN)
@pytest.mark.parametrize("block_size", [1, 3, 4, 9])
def test_draws_are_those_of_reading_the_prefix_again(block_size, within, process, settings):
    """Every token of every row: a last block that is shorter, some tokens given, prompts of unequal length."""
    noise, backbone, num, length = parts.process(process, vocab_size=7), network(7, **settings), 5, 10
    generator = torch.Generator().manual_seed(2)
    fixed = (torch.arange(length) < torch.tensor([0, 2, 5, 3, 1])[:, None]) | (torch.arange(length) == 8)
    tokens = torch.randint(2, 7, (num, length), generator=generator)
    canvas = Canvas(tokens.masked_fill(~fixed, MASK_ID), fixed)
    sampler = Blockwise(block_size, WITHIN[within])
    num_blocks = -(-length // block_size)
    num_steps = 4 * num_blocks
    steps_per_block = sampler.num_steps(canvas, num_steps) // num_blocks

    got = generate(backbone, noise, sampler, canvas, num_steps, 12).tokens
    for row in torch.arange(num).split(1):
        alone, same = Canvas(canvas.tokens[row], canvas.fixed[row]), row_noise(row, 12)
        expected = plain_blockwise(backbone, noise, WITHIN[within], block_size, alone, steps_per_block, same)
        assert torch.equal(got[row], expected)


class Recording:
    """A network, and what it was handed."""

    supports_cache = False

    def __init__(self, backbone: Denoiser) -> None:
        self.backbone, self.prefilled, self.read = backbone, [], []

    def __call__(self, inputs: NetworkInput) -> Prediction:
        assert inputs.cache is not None
        self.read.append((inputs.cache.length, inputs.x_t.shape[1]))
        return self.backbone(inputs)

    def prefill(self, tokens: Tensor, block_size: int | None = None, cache: Cache | None = None) -> Cache:
        self.prefilled.append((tokens.shape[1], block_size, 0 if cache is None else cache.length))
        return self.backbone.prefill(tokens, block_size, cache)


def test_each_clean_block_is_handed_over_once():
    """Of 10 tokens in blocks of 4: an empty prefix, then one block at a time; steps read their own block alone."""
    denoiser, noise = Recording(network()), parts.process("uniform")
    generate(denoiser, noise, blockwise(4), empty(noise, 3, 10), 6, 0)
    assert denoiser.prefilled == [(0, 4, 0), (4, 4, 0), (4, 4, 4)]
    assert denoiser.read == [(0, 4)] * 2 + [(4, 4)] * 2 + [(8, 2)] * 2


# Settings


def test_settings_reach_the_sampler_inside():
    sampler = blockwise(4).with_settings(block_size=2, temperature=0.5)
    assert (sampler.block_size, sampler.within.temperature) == (2, 0.5)
    assert blockwise(4).with_settings(block_size=8) == Blockwise(8, Ancestral(1.0, None, 1.0))
    with pytest.raises(ValueError, match="sampler=ancestral has no num_corrections"):
        blockwise(4).with_settings(num_corrections=1)


def test_samplers_that_have_no_place_in_a_block_are_refused():
    with pytest.raises(ValueError, match=r"block_size 0 is outside \[1, "):
        blockwise(0)
    for within in (blockwise(2), parts.sampler("autoregressive")):
        with pytest.raises(ValueError, match=f"within={within.name}: give a diffusion sampler without blocks"):
            Blockwise(4, within)
