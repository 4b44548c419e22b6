"""P2: what is kept, masked again and at what cost."""

from __future__ import annotations

import pytest
import torch

from dlmkit.generation import Event, generate
from dlmkit.laws.denoisers import FixedLogits
from dlmkit.laws.samplers import empty
from dlmkit.processes.absorbing import Absorbing
from dlmkit.randomness import row_noise
from dlmkit.samplers.base import Step
from dlmkit.samplers.p2 import P2
from dlmkit.schedules.linear import Linear
from dlmkit.types import Canvas

NOISE = Absorbing(Linear(), 4, 3)


def network(num: int, length: int) -> FixedLogits:
    logits = torch.randn(num, length, 4, generator=torch.Generator().manual_seed(0))
    logits[..., 3] = float("-inf")
    return FixedLogits(logits)


def masked_again(eta: float) -> int:
    again = 0

    def on_step(event: Event) -> None:
        nonlocal again
        again += int(((event.before != 3) & (event.after == 3)).sum())

    done = generate(network(50, 8), NOISE, P2(eta=eta), empty(NOISE, 50, 8), 8, 0, on_step)
    assert (done.tokens != 3).all()
    return again


def test_more_is_masked_again_the_larger_eta():
    """None with eta = 0."""
    counts = [masked_again(eta) for eta in (0.0, 1.0, 3.0)]
    assert counts[0] == 0
    assert 0 < counts[1] < counts[2]


@pytest.mark.parametrize(("eta", "kept"), [(0.0, [1, 2]), (1.0, [0, 2]), (3.0, [0, 2])])
def test_one_step_by_hand(eta, kept):
    """Position 1 is decided with an unlikely token, 0 and 2 are certain, 3 is given; 2 of 3 free ones are kept."""
    probs = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.1, 0.9, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    probs[0] = torch.tensor([0.999, 0.001, 0.0, 0.0])
    x_t, fixed = torch.tensor([[3, 0, 3, 1]]), torch.tensor([[False, False, False, True]])
    sampler, t = P2(eta=eta, temperature=0.0), torch.ones(1, dtype=torch.float64)
    state = sampler.init(Canvas(x_t, fixed))
    step = Step(1, 3, t, t, fixed, fixed, row_noise(torch.arange(1), 0))
    done = sampler.step(FixedLogits(probs.log()[None]), NOISE, x_t, step, state)
    assert (done.tokens[0] != 3).nonzero()[:, 0].tolist() == [*kept, 3]
    assert done.tokens[0, 3] == 1


def test_every_step_drafts_the_whole_text_and_costs_a_pass():
    """Also the last one: the last masks are not replaced a step too soon. A row without free positions costs none."""
    fixed = torch.arange(8) < torch.tensor([0, 8, 5])[:, None]
    canvas = Canvas(torch.zeros(3, 8, dtype=torch.int64), fixed)
    assert generate(network(3, 8), NOISE, P2(), canvas, 6, 0).passes.tolist() == [6, 0, 6]
