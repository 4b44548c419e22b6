"""Times and noise of held-out sequences: functions of the sequence's index, whatever the batch."""

from __future__ import annotations

import pytest
import torch

from dlmkit.evaluation.time_grid import corrupt_times, noised_grid, time_grid
from dlmkit.processes.absorbing import Absorbing
from dlmkit.processes.none import NoNoise
from dlmkit.processes.uniform import Uniform
from dlmkit.schedules.linear import Linear
from dlmkit.types import Batch

V, MASK = 7, 6


@pytest.mark.parametrize("process", [Absorbing(Linear(), V, MASK), Uniform(Linear(), V, MASK)])
def test_noise_is_a_function_of_key_and_index(process):
    batch = Batch(torch.zeros(4, 32, dtype=torch.int64), torch.ones(4, 32, dtype=torch.bool))
    t = torch.full((1, 4), 0.5, dtype=torch.float64)

    def draw(indices, *key):
        return corrupt_times(process, batch, t, list(indices), *key)[0]

    one = draw(range(4), 0, "noise", 7)
    assert torch.equal(one, draw(range(4), 0, "noise", 7))
    assert torch.equal(one.flip(0), draw([3, 2, 1, 0], 0, "noise", 7))
    assert torch.equal(draw([2, 2, 2, 2], 0, "noise", 7), one[2].expand(4, -1))
    for other in (draw(range(4), 0, "noise", 8), draw(range(4), 1, "noise", 7), draw(range(1, 5), 0, "noise", 7)):
        assert not torch.equal(one, other)


def test_noise_follows_the_process():
    """The share of masks in many sequences, each drawn with its own generator, is 1 - alpha."""
    num, length = 500, 40
    process = Absorbing(Linear(), V, MASK)
    batch = Batch(torch.zeros(num, length, dtype=torch.int64), torch.ones(num, length, dtype=torch.bool))
    t = torch.tensor([[0.2], [0.7]], dtype=torch.float64).expand(2, num)
    x_t = corrupt_times(process, batch, t, list(range(num)), "law")
    shares = (x_t == MASK).double().mean((1, 2))
    error = 4 * (0.25 / (num * length)) ** 0.5
    assert shares[0] == pytest.approx(0.2, abs=error)
    assert shares[1] == pytest.approx(0.7, abs=error)
    # Sequences are independent: their shares vary as those of independent tokens do.
    spread = (x_t[1] == MASK).double().mean(-1).std()
    assert float(spread) == pytest.approx((0.7 * 0.3 / length) ** 0.5, rel=0.15)


@pytest.mark.parametrize("num_times", [1, 2, 8])
def test_each_sequence_has_one_time_in_every_stratum(num_times):
    t, weight = time_grid(torch.arange(50), num_times)
    assert t.shape == weight.shape == (num_times, 50)
    assert t.dtype == torch.float64
    assert (t > 0).all()
    assert (t <= 1).all()
    v = t.sqrt()  # even in v, and weighted by dt/dv
    torch.testing.assert_close(weight, 2 * v)
    cells = (v * num_times).ceil().long() - 1
    assert torch.equal(cells.sort(0).values, torch.arange(num_times)[:, None].expand(-1, 50))


def test_times_fill_each_stratum_evenly():
    """The offsets of N sequences are a Kronecker sequence: no gap is larger than a few times 1/N."""
    num = 400
    t, weight = time_grid(torch.arange(num), 4)
    offsets = (t[0].sqrt() * 4).sort().values
    gaps = torch.diff(torch.cat([torch.zeros(1), offsets, torch.ones(1)]))
    assert float(gaps.max()) < 2.7 / num
    # So the mean over sequences is an integral to O(1 / N), where independent draws would leave 1 / sqrt(N).
    assert float(weight.mean()) == pytest.approx(1.0, abs=1 / num)
    assert float((weight * t**2).mean()) == pytest.approx(1 / 3, abs=1 / num)


@pytest.mark.parametrize("process", [Absorbing, Uniform, NoNoise])
def test_grid_and_noise_do_not_depend_on_the_batch(process):
    noise = NoNoise(V, MASK) if process is NoNoise else process(Linear(), V, MASK)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(MASK, (12, 9), generator=generator)
    scored = torch.rand(12, 9, generator=generator) < 0.8
    index = torch.arange(12)

    def grid(rows):
        batch = Batch(tokens[rows], scored[rows])
        noised = list(noised_grid(noise, batch, index[rows], 3))
        return [torch.stack([getattr(one, name) for one in noised]) for name in ("t", "weight", "x_t")]

    t, weight, x_t = grid(index)
    assert (t.shape, weight.shape, x_t.shape) == ((3, 12), (3, 12), (3, 12, 9))
    assert torch.equal(x_t[:, ~scored], tokens[~scored].expand(3, -1))
    for rows in (index[:5], index[5:], index[1::2], index[11:]):
        part_t, part_weight, part_x = grid(rows)
        assert torch.equal(part_t, t[:, rows])
        assert torch.equal(part_weight, weight[:, rows])
        assert torch.equal(part_x, x_t[:, rows])
    if process is not NoNoise:
        assert not torch.equal(x_t[0], x_t[2])
