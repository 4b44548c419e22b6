"""Semi-autoregressive decoding: one block after the other, without waiting for steps that are not needed."""

from __future__ import annotations

import pytest
import torch

from dlmkit.generation import Event, generate
from dlmkit.laws.denoisers import FixedLogits
from dlmkit.laws.samplers import empty
from dlmkit.processes.absorbing import Absorbing
from dlmkit.samplers.blockwise import Blockwise
from dlmkit.samplers.confidence import Confidence
from dlmkit.samplers.semi_autoregressive import SemiAutoregressive
from dlmkit.samplers.threshold import Threshold
from dlmkit.schedules.linear import Linear
from dlmkit.types import Canvas, NetworkInput

NOISE = Absorbing(Linear(), 4, 3)


def network(num: int, length: int, sure: float = 0.4) -> FixedLogits:
    return FixedLogits(torch.tensor([sure, (1 - sure) / 2, (1 - sure) / 2, 0.0]).log().expand(num, length, 4))


def test_no_position_is_decided_before_its_block():
    seen: list[set[int]] = []

    def on_step(event: Event) -> None:
        seen.append(set((event.before != event.after).any(0).nonzero()[:, 0].tolist()))

    generate(network(20, 7), NOISE, SemiAutoregressive(3, Confidence()), empty(NOISE, 20, 7), 9, 0, on_step)
    assert len(seen) == 7  # 9 // 3 steps for each block, of which the last has one position
    assert set.union(*seen[:3]) == {0, 1, 2}
    assert set.union(*seen[3:6]) == {3, 4, 5}
    assert seen[6] == {6}


def test_the_network_reads_the_whole_text():
    lengths = []

    class Recording(FixedLogits):
        def __call__(self, inputs: NetworkInput):
            lengths.append(inputs.x_t.shape[1])
            assert inputs.cache is None
            return super().__call__(inputs)

    denoiser = Recording(network(1, 7).given)
    generate(denoiser, NOISE, SemiAutoregressive(3, Confidence()), empty(NOISE, 1, 7), 9, 0)
    assert lengths == [7] * 7


@pytest.mark.parametrize("kind", [SemiAutoregressive, Blockwise])
def test_a_block_that_is_decided_early_makes_room_for_the_next(kind):
    """All positions of a block are above the threshold: a step and a pass for each block, whatever was requested."""
    sampler = kind(4, Threshold(threshold=0.9))
    done = generate(network(3, 8, sure=0.95), NOISE, sampler, empty(NOISE, 3, 8), 8, 0)
    assert done.num_steps == 2
    assert done.passes.tolist() == [2, 2, 2]
    slow = generate(network(3, 8, sure=0.4), NOISE, sampler, empty(NOISE, 3, 8), 8, 0)
    assert slow.passes.tolist() == [8, 8, 8]


@pytest.mark.parametrize("kind", [SemiAutoregressive, Blockwise])
def test_given_blocks_cost_nothing(kind):
    fixed = torch.tensor([[True] * 4 + [False] * 4, [True] * 8, [False] * 2 + [True] * 6])
    canvas = Canvas(torch.zeros(3, 8, dtype=torch.int64), fixed)
    done = generate(network(3, 8), NOISE, kind(4, Confidence()), canvas, 8, 0)
    assert done.passes.tolist() == [4, 0, 2]
    assert (done.tokens != 3).all()


def test_settings_reach_the_sampler_inside():
    sampler = SemiAutoregressive(4, Confidence()).with_settings(block_length=2, score="margin")
    assert (sampler.block_length, sampler.within) == (2, Confidence(score="margin"))
    assert sampler.block_size is None  # not of training
    with pytest.raises(ValueError, match="give a diffusion sampler without blocks"):
        SemiAutoregressive(4, sampler)
