"""First-hitting sampling: one mask at a time, at times that are those of ancestral sampling in the limit."""

from __future__ import annotations

import pytest
import torch

from dlmkit.generation import Event, generate
from dlmkit.laws.denoisers import FixedLogits
from dlmkit.laws.findings import FALSE_ALARM
from dlmkit.laws.samplers import empty
from dlmkit.laws.statistics import chi_square_p
from dlmkit.processes.absorbing import Absorbing
from dlmkit.samplers.first_hitting import FirstHitting
from dlmkit.schedules.cosine import Cosine
from dlmkit.schedules.linear import Linear
from dlmkit.types import NetworkInput

NUM = 5_000
LOGITS = torch.tensor([0.5, 0.5, 0.0]).log().expand(NUM, 4, 3)


class Timed(FixedLogits):
    """Keeps the times that it was asked about."""

    def __init__(self) -> None:
        super().__init__(LOGITS)
        self.times: list[torch.Tensor] = []

    def __call__(self, inputs: NetworkInput):
        self.times.append(inputs.t)
        return super().__call__(inputs)


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=lambda schedule: schedule.name)
def test_the_noise_levels_are_those_of_uniform_numbers_in_order(schedule):
    """1 - alpha at which the masks go is the largest, second, ... of 4 uniform numbers: means 4/5, 3/5, 2/5, 1/5."""
    noise, network = Absorbing(schedule, 3, 2), Timed()
    generate(network, noise, FirstHitting(), empty(noise, NUM, 4), 1, 0)
    levels = torch.stack([1 - noise.alpha(t) for t in network.times])
    assert (levels.diff(dim=0) < 0).all()
    expected = torch.tensor([0.8, 0.6, 0.4, 0.2], dtype=torch.float64)
    torch.testing.assert_close(levels.mean(-1), expected, rtol=0, atol=5 * 0.2 / NUM**0.5)
    # The largest of four is below x with probability x^4.
    quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64) ** 0.25
    counts = torch.bincount(torch.bucketize(levels[0], quartiles), minlength=4)
    assert chi_square_p(counts, torch.full((4,), NUM / 4.0)) > FALSE_ALARM


def test_each_order_is_as_likely():
    noise, order = Absorbing(Linear(), 3, 2), []

    def on_step(event: Event) -> None:
        changed = event.before != event.after
        assert (changed.sum(-1) == 1).all()
        order.append(changed.long().argmax(-1))

    generate(FixedLogits(LOGITS), noise, FirstHitting(), empty(noise, NUM, 4), 99, 0, on_step)
    assert len(order) == 4
    number = order[0] * 16 + order[1] * 4 + order[2]
    counts = torch.bincount(number)
    assert chi_square_p(counts[counts > 0], torch.full((24,), NUM / 24.0)) > FALSE_ALARM
