"""Noise of a block: a function of its key and number, and the process's distribution."""

from __future__ import annotations

import pytest
import torch
from dlmkit.noising import corrupt_blocks

from dlmkit.processes.absorbing import Absorbing
from dlmkit.processes.uniform import Uniform
from dlmkit.schedules.linear import Linear
from dlmkit.types import Batch

V, MASK = 5, 4


@pytest.mark.parametrize("process", [Absorbing(Linear(), V, MASK), Uniform(Linear(), V, MASK)])
def test_keys_and_numbers_make_the_draw(process):
    batch = Batch(torch.zeros(4, 32, dtype=torch.int64), torch.ones(4, 32, dtype=torch.bool))
    t = torch.full((4,), 0.5, dtype=torch.float64)

    def draw(numbers, *key):
        return corrupt_blocks(process, batch, t, numbers, *key)

    one = draw(range(4), 0, "noise", 7)
    assert torch.equal(one, draw(range(4), 0, "noise", 7))
    assert torch.equal(one.flip(0), draw([3, 2, 1, 0], 0, "noise", 7))
    assert torch.equal(draw([2, 2, 2, 2], 0, "noise", 7), one[2].expand(4, -1))
    for other in (draw(range(4), 0, "noise", 8), draw(range(4), 1, "noise", 7), draw(range(1, 5), 0, "noise", 7)):
        assert not torch.equal(one, other)


def test_blocks_follow_the_process():
    """The share of masks in many blocks, each drawn on its own, is 1 - alpha."""
    num, length = 500, 40
    process = Absorbing(Linear(), V, MASK)
    batch = Batch(torch.zeros(num, length, dtype=torch.int64), torch.ones(num, length, dtype=torch.bool))
    t = torch.tensor([[0.2], [0.7]], dtype=torch.float64).expand(2, num)
    x_t = corrupt_blocks(process, batch, t, range(num), "law")
    shares = (x_t == MASK).double().mean((1, 2))
    error = 4 * (0.25 / (num * length)) ** 0.5
    assert shares[0] == pytest.approx(0.2, abs=error)
    assert shares[1] == pytest.approx(0.7, abs=error)
    # Blocks are independent: their shares vary as those of independent tokens do.
    spread = (x_t[1] == MASK).double().mean(-1).std()
    assert float(spread) == pytest.approx((0.7 * 0.3 / length) ** 0.5, rel=0.15)
