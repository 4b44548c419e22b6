"""Block diffusion's objective: block sizes, and what it takes over from the objective inside a block."""

from __future__ import annotations

import pytest

from dlmkit.objectives.block import BlockElbo, num_blocks
from dlmkit.objectives.discrete import DiscreteTimeElbo
from dlmkit.objectives.masked import MaskedElbo
from dlmkit.objectives.score_entropy import ScoreEntropy
from laws import parts


def test_blocks_fill_the_length():
    assert [num_blocks(length, 4) for length in (1, 4, 8, 64)] == [1, 1, 2, 16]
    assert num_blocks(10, None) == 1
    with pytest.raises(ValueError, match=r"length 10 is no multiple of objective\.block_size 4.*such as 8"):
        num_blocks(10, 4)


def test_sizes_and_objectives_that_have_no_place_in_a_block_are_refused():
    with pytest.raises(ValueError, match=r"block_size 0 is outside \[1, "):
        BlockElbo(0, MaskedElbo())
    for within in (BlockElbo(4, MaskedElbo()), parts.objective("autoregressive")):
        with pytest.raises(ValueError, match=f"within={within.name}: give a diffusion objective"):
            BlockElbo(4, within)


@pytest.mark.parametrize("within", [MaskedElbo(), ScoreEntropy(), DiscreteTimeElbo(8)], ids=lambda one: one.name)
def test_declares_what_the_objective_inside_does(within):
    blocks = BlockElbo(4, within)
    assert blocks.inner_parts() == {"within": within}
    for name in ("parameterization", "requires", "num_steps", "noisy_positions_only", "divides_by_noise_rate"):
        assert getattr(blocks, name) == getattr(within, name)
    assert not blocks.exact
