"""Classifier-free guidance: its formula, where it changes nothing, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from dlmkit.backbones.dit import DiT
from dlmkit.backbones.guided import Guided
from dlmkit.generation import generate
from dlmkit.laws.pairing import WORDS
from dlmkit.processes.absorbing import Absorbing
from dlmkit.samplers.blockwise import Blockwise
from dlmkit.samplers.confidence import Confidence
from dlmkit.schedules.linear import Linear
from dlmkit.types import Canvas, NetworkInput
from networks import randomised

V, MASK_ID = WORDS.vocab_size, 1
NOISE = Absorbing(Linear(), V, MASK_ID)


def network() -> DiT:
    torch.manual_seed(0)
    return randomised(DiT(V, MASK_ID, 16, 16, 2, 2, 8)).eval()


def an_input() -> NetworkInput:
    """A prompt of 3, one of 0, and masks behind them but for one decided token."""
    tokens = torch.randint(2, V, (2, 6), generator=torch.Generator().manual_seed(0))
    given = torch.arange(6) < torch.tensor([3, 0])[:, None]
    x_t = tokens.masked_fill(~given, MASK_ID)
    x_t[:, 4] = 5
    return NetworkInput(x_t, torch.full((2,), 0.5, dtype=torch.float64), given=given)


@torch.no_grad()
def test_the_formula():
    """(1 + w) log p(. | x_t) - w log p(. | masks for what is given); a row without a prompt is left as it is."""
    backbone, inputs = network(), an_input()
    where = inputs.x_t == MASK_ID
    without = inputs.x_t.clone()
    without[0, :3] = MASK_ID
    toward = backbone(inputs).logits(where).log_softmax(-1)
    away = backbone(NetworkInput(without, inputs.t)).logits(where).log_softmax(-1)
    guided = Guided(backbone, 1.5, MASK_ID)(inputs).logits(where)
    expected = 2.5 * toward - 1.5 * away
    finite = torch.arange(V) != MASK_ID
    torch.testing.assert_close(guided[:, finite], expected[:, finite])
    assert (guided[:, MASK_ID] == float("-inf")).all()
    of_row_1 = torch.arange(2)[:, None].expand(2, 6)[where] == 1
    torch.testing.assert_close(guided[of_row_1][:, finite], toward[of_row_1][:, finite], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_scale_zero_is_the_network_itself():
    backbone, inputs = network(), an_input()
    where = inputs.x_t == MASK_ID
    same = Guided(backbone, 0.0, MASK_ID)(inputs).logits(where).softmax(-1)
    torch.testing.assert_close(same, backbone(inputs).logits(where).softmax(-1))
    canvas = Canvas(inputs.x_t, inputs.given)
    texts = [
        generate(one, NOISE, Confidence(), canvas, 6, 0).tokens for one in (backbone, Guided(backbone, 0, MASK_ID))
    ]
    assert torch.equal(*texts)


def test_a_larger_scale_makes_what_the_prompt_favours_likelier():
    backbone, inputs = network(), an_input()
    where = (inputs.x_t == MASK_ID) & torch.tensor([[True], [False]])
    with torch.no_grad():
        plain, guided = (one(inputs).logits(where).softmax(-1) for one in (backbone, Guided(backbone, 3.0, MASK_ID)))
        unprompted = Guided(backbone, -1.0, MASK_ID)(inputs).logits(where).softmax(-1)
    most = (plain / unprompted).masked_fill(plain == 0, 0.0).argmax(-1, keepdim=True)
    assert (guided.gather(-1, most) > plain.gather(-1, most)).all()


def test_what_has_a_cache_is_refused():
    guided = Guided(network(), 1.0, MASK_ID)
    canvas = Canvas(torch.full((1, 4), MASK_ID), torch.zeros(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="guidance needs the whole text"):
        generate(guided, NOISE, Blockwise(2, Confidence()), canvas, 4, 0)
    with pytest.raises(ValueError, match="guidance needs the whole text"):
        guided(NetworkInput(canvas.tokens, torch.ones(1, dtype=torch.float64)))
