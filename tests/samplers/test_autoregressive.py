"""Left-to-right generation: the network's own distribution, prompts of any lengths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlmkit.backbones.hf import HFBackbone
from dlmkit.generation import generate
from dlmkit.laws.findings import FALSE_ALARM
from dlmkit.laws.samplers import counts_of, empty
from dlmkit.laws.source import all_sequences
from dlmkit.laws.statistics import chi_square_p
from dlmkit.types import Cache, Canvas, NetworkInput, Prediction
from laws import parts
from laws.parts import MASK_ID, VOCAB_SIZE

LENGTH = 3
NO_NOISE = parts.process("none")


def tiny_causal(seed: int = 0) -> HFBackbone:
    torch.manual_seed(seed)
    backbone = HFBackbone(
        vocab_size=VOCAB_SIZE,
        mask_id=MASK_ID,
        bos_id=0,
        causal=True,
        shift=True,
        bos="prepend",
        attention="sdpa",
        attention_with_mask=None,
        gradient_checkpointing=False,
        lora={"rank": 0},
        name=None,
        config={"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 8},
    )
    for parameter in backbone.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return backbone.eval()


@torch.no_grad()
def own_chain(backbone: HFBackbone) -> Tensor:
    """The product of the model's own next-token probabilities for every sequence, [V^L]."""
    x = all_sequences(LENGTH, VOCAB_SIZE)
    logits = backbone.model(torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)).logits.double()
    logits[..., MASK_ID] = float("-inf")
    return logits.log_softmax(-1).gather(-1, x[..., None])[..., 0].sum(-1).exp()


def test_autoregressive_samples_have_the_models_distribution():
    backbone, num = tiny_causal(), 20_000
    expected = own_chain(backbone)
    assert float(expected.sum()) == pytest.approx(1.0)
    canvas = generate(backbone, NO_NOISE, parts.sampler("autoregressive"), empty(NO_NOISE, num), 1, 0)
    assert chi_square_p(counts_of(canvas.tokens, VOCAB_SIZE), expected * num) > FALSE_ALARM


def test_autoregressive_prompt_is_kept_and_conditioned_on():
    backbone, num = tiny_causal(), 20_000
    prompt = torch.tensor([3, MASK_ID, MASK_ID]).repeat(num, 1)
    canvas = Canvas(prompt, (torch.arange(LENGTH) < 1).expand(num, -1))
    done = generate(backbone, NO_NOISE, parts.sampler("autoregressive"), canvas, 99, 0)
    expected = own_chain(backbone) * (all_sequences(LENGTH, VOCAB_SIZE)[:, 0] == 3)
    assert (done.tokens[:, 0] == 3).all()
    assert chi_square_p(counts_of(done.tokens, VOCAB_SIZE), expected / expected.sum() * num) > FALSE_ALARM


def test_autoregressive_temperature_zero_is_greedy():
    backbone = tiny_causal()
    sampler = parts.sampler("autoregressive", temperature=0.0)
    done = generate(backbone, NO_NOISE, sampler, empty(NO_NOISE, 2), 1, 0).tokens
    with torch.no_grad():
        logits = backbone.model(torch.cat([torch.zeros(2, 1, dtype=torch.int64), done[:, :-1]], 1)).logits
    logits[..., MASK_ID] = float("-inf")
    assert torch.equal(done, logits.argmax(-1))


@pytest.mark.parametrize("fixed", [[[False, True, False]], [[True, False, True]], [[True] * 3, [False, False, True]]])
def test_autoregressive_refuses_infilling(fixed):
    fixed = torch.tensor(fixed)
    canvas = Canvas(torch.zeros_like(fixed, dtype=torch.int64), fixed)
    with pytest.raises(ValueError, match="generates left to right and cannot fill in the middle"):
        generate(tiny_causal(), NO_NOISE, parts.sampler("autoregressive"), canvas, 3, 0)


# Prompts of unequal length


def ragged() -> Canvas:
    """Rows with 0 to 5 given tokens of 6, in no order."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([2, 0, 5, 3, 1, 4, 2])
    tokens = torch.randint(2, VOCAB_SIZE, (len(lengths), 6), generator=generator)
    fixed = torch.arange(6) < lengths[:, None]
    return Canvas(tokens.masked_fill(~fixed, MASK_ID), fixed)


def test_prompts_of_unequal_length_equal_row_by_row():
    """Greedily, so that no row depends on the draws of the others."""
    backbone, sampler, canvas = tiny_causal(), parts.sampler("autoregressive", temperature=0.0), ragged()
    together = generate(backbone, NO_NOISE, sampler, canvas, 1, 0).tokens
    for row in range(len(together)):
        alone = Canvas(canvas.tokens[row, None], canvas.fixed[row, None])
        done = generate(backbone, NO_NOISE, sampler, alone, 1, 0).tokens
        assert torch.equal(done[0], together[row]), row
    assert torch.equal(together[canvas.fixed], canvas.tokens[canvas.fixed])


def test_prompts_of_unequal_length_are_conditioned_on():
    """Rows with one given token and with two in one batch: each follows its own conditional."""
    backbone, num = tiny_causal(), 20_000
    tokens = torch.tensor([[3, MASK_ID, MASK_ID], [2, 0, MASK_ID]]).repeat(num, 1)
    canvas = Canvas(tokens, tokens != MASK_ID)
    done = generate(backbone, NO_NOISE, parts.sampler("autoregressive"), canvas, 1, 0).tokens
    x, chain = all_sequences(LENGTH, VOCAB_SIZE), own_chain(backbone)
    for rows, prompt in ((done[::2], [3]), (done[1::2], [2, 0])):
        expected = chain * (x[:, : len(prompt)] == torch.tensor(prompt)).all(-1)
        assert chi_square_p(counts_of(rows, VOCAB_SIZE), expected / expected.sum() * num) > FALSE_ALARM


def test_there_is_a_step_for_each_position_after_the_shortest_prompt():
    sampler, canvas, seen = parts.sampler("autoregressive"), ragged(), []
    prompted = Canvas(canvas.tokens[[2, 3, 5]], canvas.fixed[[2, 3, 5]])  # of 5, 3 and 4 tokens
    given = Canvas(canvas.tokens, torch.ones_like(canvas.fixed))
    assert [sampler.num_steps(one, 99) for one in (canvas, prompted, given)] == [6, 3, 1]
    generate(tiny_causal(), NO_NOISE, sampler, prompted, 99, 0, lambda event: seen.append(event.index))
    assert seen == [0, 1, 2]
    done = generate(tiny_causal(), NO_NOISE, sampler, given, 99, 0)
    assert torch.equal(done.tokens, given.tokens)


def test_the_prefix_is_handed_over_once():
    """Each token is prefilled once, in order, and each step reads one position beside it."""

    class Recording:
        supports_cache = False

        def __init__(self) -> None:
            self.backbone, self.prefilled, self.read = tiny_causal(), [], []

        def __call__(self, inputs: NetworkInput) -> Prediction:
            self.read.append(inputs.x_t.shape[1])
            return self.backbone(inputs)

        def prefill(self, tokens: Tensor, block_size: int | None = None, cache: Cache | None = None) -> Cache:
            self.prefilled.append(tokens.shape[1])
            return self.backbone.prefill(tokens, block_size, cache)

    canvas, network = ragged(), Recording()
    prompted = Canvas(canvas.tokens[[2, 3, 5]], canvas.fixed[[2, 3, 5]])
    generate(network, NO_NOISE, parts.sampler("autoregressive"), prompted, 1, 0)
    assert network.prefilled == [3, 1, 1]
    assert network.read == [1, 1, 1]
