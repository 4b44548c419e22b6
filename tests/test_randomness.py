"""Numbers for each row and position: the published generator, uniform, independent, and functions of their key."""

from __future__ import annotations

import pytest
import torch

from dlmkit.laws.findings import FALSE_ALARM
from dlmkit.laws.statistics import chi_square_p
from dlmkit.randomness import RowNoise, row_noise, splitmix64, to_unit


@pytest.mark.parametrize(
    ("state", "output"),
    [(0, 0xE220A8397B1DCDAF), (1, 0x910A2DEC89025CC1), (0x9E3779B97F4A7C15, 0x6E789E6AA1B965F4)],
)
def test_splitmix64_has_its_published_values(state, output):
    """Those of the reference implementation; the third is the second number of the seed 0."""
    signed = state - 2**64 if state >= 2**63 else state
    assert int(splitmix64(torch.tensor(signed))) % 2**64 == output


def test_splitmix64_is_one_to_one():
    outputs = splitmix64(torch.arange(-50_000, 50_000))
    assert len(outputs.unique()) == 100_000


def test_numbers_are_inside_the_unit_interval_and_uniform():
    numbers = row_noise(torch.arange(2_000), 0).uniform("tokens", 50)
    assert numbers.dtype == torch.float64
    assert 0.0 < float(numbers.min()) < float(numbers.max()) < 1.0
    counts = torch.histc(numbers.float().flatten(), 100, 0.0, 1.0)
    assert chi_square_p(counts, torch.full((100,), numbers.numel() / 100)) > FALSE_ALARM
    # The last bits too, of which a token's tail is made.
    last = torch.bincount((numbers.flatten() * 2**52).long() % 16, minlength=16)
    assert chi_square_p(last, torch.full((16,), numbers.numel() / 16)) > FALSE_ALARM


def test_no_number_is_0_or_1():
    """The smallest and the largest: (0 + 1/2) 2^-52 and (2^52 - 1/2) 2^-52, exactly."""
    assert to_unit(torch.tensor([0, -1])).tolist() == [2.0**-53, 1 - 2.0**-53]


PAIRS = {
    "neighbours": lambda noise: (noise.uniform("a", 41)[:, :-1], noise.uniform("a", 41)[:, 1:]),
    "rows": lambda noise: (noise.uniform("a", 40)[:-1], noise.uniform("a", 40)[1:]),
    "steps": lambda noise: (noise.at(step=3).uniform("a", 40), noise.at(step=4).uniform("a", 40)),
    "names": lambda noise: (noise.uniform("a", 40), noise.uniform("b", 40)),
    "seeds": lambda noise: (row_noise(torch.arange(2_000), 1).uniform("a", 40), noise.uniform("a", 40)),
    "row and place": lambda noise: (noise.uniform("a", 41)[:-1, 1:], noise.uniform("a", 41)[1:, :-1]),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_numbers_are_independent(pair):
    """Counts on a grid of 10 by 10; keys that differ in one part have unrelated numbers."""
    x, y = PAIRS[pair](row_noise(torch.arange(2_000), 0))
    cells = torch.bincount(((x * 10).long() * 10 + (y * 10).long()).flatten(), minlength=100)
    assert chi_square_p(cells, torch.full((100,), x.numel() / 100)) > FALSE_ALARM


def test_a_number_depends_on_its_row_step_name_and_position_alone():
    noise = row_noise(torch.arange(10), "seed").at(step=2)
    numbers = noise.uniform("tokens", 8)
    assert torch.equal(noise.uniform("tokens", 5), numbers[:, :5])
    assert torch.equal(noise.at(start=3).uniform("tokens", 5), numbers[:, 3:])
    rows = torch.tensor([7, 2])
    assert torch.equal(noise.select(rows).uniform("tokens", 8), numbers[rows])
    assert torch.equal(RowNoise(noise.seeds[4:5], step=2).uniform("tokens", 8), numbers[4:5])


def test_golden_numbers():
    """Samples of a seed stay what they are from version to version; a change is stated in the changelog."""
    numbers = row_noise(torch.arange(2), 0).uniform("tokens", 2)
    torch.testing.assert_close(numbers, GOLDEN, rtol=0, atol=1e-15)


GOLDEN = torch.tensor(
    [[0.14856018384999198, 0.5814108570038206], [0.4867031148377195, 0.3200031783005132]], dtype=torch.float64
)
