"""The sampling loop: rows that are finished leave it, and what happens to one row does not depend on others."""

from __future__ import annotations

import pytest
import torch

from dlmkit.generation import Event, generate
from dlmkit.laws.denoisers import FixedLogits
from dlmkit.laws.samplers import empty
from dlmkit.processes.absorbing import Absorbing
from dlmkit.randomness import row_noise
from dlmkit.samplers.autoregressive import Autoregressive
from dlmkit.samplers.confidence import Confidence
from dlmkit.schedules.linear import Linear
from dlmkit.types import Canvas

MASK_ID = 3
NOISE = Absorbing(Linear(), 4, MASK_ID)


def network(num: int, length: int) -> FixedLogits:
    """A network that predicts the same in every row."""
    logits = torch.randn(length, 4, generator=torch.Generator().manual_seed(0))
    logits[..., MASK_ID] = float("-inf")
    return FixedLogits(logits.expand(num, -1, -1))


def prompts(length: int, *given: int) -> Canvas:
    fixed = torch.arange(length) < torch.tensor(given)[:, None]
    return Canvas(torch.zeros(len(given), length, dtype=torch.int64), fixed)


def test_finished_rows_leave_the_batch():
    """7, 1 and 0 free positions, in 7 steps; the second row waits in 6 of them, and stays for its place in the plan."""
    rows: list[list[int]] = []
    generate(
        network(3, 7), NOISE, Confidence(), prompts(7, 0, 6, 7), 7, 0, lambda event: rows.append(event.rows.tolist())
    )
    assert rows[0] == [0, 1]
    assert rows[-1] == [0]
    assert all(2 not in step for step in rows)


def test_nothing_to_fill_takes_no_step():
    done = generate(network(2, 3), NOISE, Confidence(), prompts(3, 3, 3), 5, 0)
    assert (done.num_steps, done.passes.tolist()) == (0, [0, 0])


def test_events_say_what_changed():
    """Before and after join, and passes are those of the result."""
    tokens, passes, events = torch.full((3, 7), MASK_ID), torch.zeros(3, dtype=torch.int64), []

    def on_step(event: Event) -> None:
        events.append(event.index)
        assert torch.equal(event.before, tokens[event.rows])
        assert (event.before != event.after).any(-1).long().tolist() == event.passes.tolist()
        tokens[event.rows] = event.after
        passes[event.rows] += event.passes

    canvas = prompts(7, 0, 6, 3)
    tokens[canvas.fixed] = 0
    done = generate(network(3, 7), NOISE, Confidence(), canvas, 4, 0, on_step)
    assert events == [0, 1, 2, 3]
    assert torch.equal(tokens, done.tokens)
    assert torch.equal(passes, done.passes)


@pytest.mark.parametrize("sampler", [Autoregressive(), Confidence()], ids=lambda sampler: sampler.name)
def test_a_row_stops_at_its_first_free_stop_id(sampler):
    """Nothing undecided before it; a stop id in the prompt does not count; what is behind it is not scored a pass."""
    stop, num, length = 1, 40, 9
    canvas = Canvas(torch.full((num, length), stop), (torch.arange(length) < 2).expand(num, -1))
    whole = generate(network(num, length), NOISE, sampler, canvas, length, 0)
    done = generate(network(num, length), NOISE, sampler, canvas, length, 0, stop_id=stop)
    assert done.passes.sum() < whole.passes.sum()
    for row in range(num):
        places = (whole.tokens[row, 2:] == stop).nonzero()[:, 0]
        if len(places):
            end = 2 + int(places[0])
            assert torch.equal(done.tokens[row, : end + 1], whole.tokens[row, : end + 1])
        else:
            assert torch.equal(done.tokens[row], whole.tokens[row])
    if isinstance(sampler, Autoregressive):
        first = torch.where(
            (whole.tokens[:, 2:] == stop).any(-1), (whole.tokens[:, 2:] == stop).long().argmax(-1) + 1, 7
        )
        assert torch.equal(done.passes, first)


def test_passes_of_a_row_are_those_that_it_has_alone():
    """Left to right with prompts of unequal length: the longer one takes no part until its turn comes."""
    for sampler in (Autoregressive(), Confidence()):
        canvas = prompts(6, 1, 4, 6)
        together = generate(network(3, 6), NOISE, sampler, canvas, 6, row_noise(torch.arange(3), 0))
        for row in torch.arange(3).split(1):
            some = Canvas(canvas.tokens[row], canvas.fixed[row])
            alone = generate(network(1, 6), NOISE, sampler, some, 6, row_noise(row, 0))
            assert torch.equal(alone.tokens, together.tokens[row])
            assert torch.equal(alone.passes, together.passes[row])
        assert together.passes.tolist() == [5, 2, 0]


def test_the_canvas_may_be_without_rows_or_noise_given_as_a_seed():
    canvas = empty(NOISE, 3, 4)
    same = [generate(network(3, 4), NOISE, Confidence(), canvas, 4, noise).tokens for noise in
            (5, row_noise(torch.arange(3), 5))]  # fmt: skip
    assert torch.equal(*same)
