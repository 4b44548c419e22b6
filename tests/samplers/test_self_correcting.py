"""Self-correction: tokens are replaced by likelier ones, in steps of their own after the ancestral ones."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dlmkit.generation import Event, generate
from dlmkit.laws.predictions import TablePrediction
from dlmkit.laws.samplers import Exact, empty
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.base import ForwardProcess
from dlmkit.randomness import row_noise
from dlmkit.samplers.base import Step
from dlmkit.samplers.self_correcting import SelfCorrecting, Settled
from dlmkit.types import Canvas, NetworkInput
from laws import parts
from laws.parts import VOCAB_SIZE
from laws.tables import LENGTH, source


def corrected(
    num_rounds: int, sampler: SelfCorrecting, start: Tensor, fixed: Tensor, noise: ForwardProcess
) -> list[Tensor]:
    """Texts after each correction."""
    sampler = replace(sampler, num_corrections=num_rounds)
    rounds, state = [start], Settled(torch.zeros(len(start), dtype=torch.bool))
    zero = torch.zeros(len(start), dtype=torch.float64)
    for index in range(num_rounds):
        step = Step(index, num_rounds, zero, zero, fixed, fixed, row_noise(torch.arange(len(start)), index))
        done = sampler.step(Exact(source(), noise, X0LeaveOneOut()), noise, rounds[-1], step, state)
        rounds.append(done.tokens)
    return rounds


@pytest.mark.parametrize("process", ["hybrid", "uniform"])
def test_correction_climbs_to_likelier_text(process):
    """At temperature 0 with hardly any noise each round replaces a token by a likelier one given the others.

    So log p never falls, one token changes at a time, and the end is a sequence that no single change improves.
    """
    data, noise = source(), parts.process(process)
    sampler = parts.sampler("self_correcting", correction_temperature=0.0, correction_time=1e-9)
    start = data.sequences
    nothing = torch.zeros_like(start, dtype=torch.bool)
    rounds = corrected(20, sampler, start, nothing, noise)
    for before, after in pairwise(rounds):
        assert ((before != after).sum(-1) <= 1).all()
        assert (data.joint[tuple(after.T)] >= data.joint[tuple(before.T)]).all()
    end = rounds[-1]
    assert torch.equal(end, rounds[-2])
    for i in range(LENGTH):
        for token in range(VOCAB_SIZE):
            other = end.clone()
            other[:, i] = token
            assert (data.joint[tuple(other.T)] <= data.joint[tuple(end.T)]).all()
    assert data.joint[tuple(end.T)].log().mean() > data.joint[tuple(start.T)].log().mean() + 0.5


@pytest.mark.parametrize("per_round", [1, 2, 9])
def test_correction_takes_the_most_confident_proposals(per_round):
    """A correction accepts the proposals of highest probability among those that differ, and only so many."""
    data, noise = source(), parts.process("hybrid")
    sampler = parts.sampler("self_correcting", correction_temperature=0.0, tokens_per_correction=per_round)
    start = data.sequences
    (_, after) = corrected(1, sampler, start, torch.zeros_like(start, dtype=torch.bool), noise)
    table = Exact(data, noise, X0LeaveOneOut())(
        NetworkInput(start, torch.full((len(start),), 0.01, dtype=torch.float64))
    ).table.exp()
    best, proposal = table.max(-1)
    best = best.masked_fill(proposal == start, 0.0)
    for row in range(len(start)):
        ranked = [i for i in best[row].argsort(descending=True).tolist() if best[row, i] > 0][:per_round]
        expected = start[row].clone()
        expected[ranked] = proposal[row, ranked]
        assert torch.equal(after[row], expected)


def test_correction_leaves_given_tokens_and_absorbing_noise_alone():
    start = source().sequences
    fixed = torch.rand(start.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    sampler = parts.sampler("self_correcting", correction_temperature=2.0, tokens_per_correction=3)
    (_, after) = corrected(1, sampler, start, fixed, parts.process("hybrid"))
    assert torch.equal(after[fixed], start[fixed])
    assert not torch.equal(after, start)
    (_, after) = corrected(1, sampler, start, torch.zeros_like(fixed), parts.process("absorbing"))
    assert torch.equal(after, start)


def test_no_correction_is_ancestral():
    data, noise = source(), parts.process("hybrid")
    samples = [
        generate(Exact(data, noise, X0LeaveOneOut()), noise, sampler, empty(noise, 50), 8, 0).tokens
        for sampler in (parts.sampler("self_correcting", num_corrections=0), parts.sampler("ancestral"))
    ]
    assert torch.equal(*samples)


@pytest.mark.parametrize(
    "changes",
    [{"num_corrections": -1}, {"tokens_per_correction": 0}, {"correction_time": 0.0}, {"correction_temperature": -1.0}],
)
def test_corrections_outside_of_their_ranges_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes)).removeprefix("correction_")):
        parts.sampler("self_correcting", **changes)


# Steps


class Counting(Exact):
    """The exact denoiser, which counts its calls."""

    calls = 0

    def __call__(self, inputs: NetworkInput) -> TablePrediction:
        self.calls += 1
        return super().__call__(inputs)


def counted(noise: ForwardProcess, sampler: SelfCorrecting, canvas: Canvas) -> tuple[Counting, list[Event]]:
    """The denoiser after `generate` with 6 ancestral steps, and every step."""
    denoiser, seen = Counting(source(), noise, X0LeaveOneOut()), []

    def on_step(event: Event) -> None:
        assert event.index == len(seen)
        seen.append(event)

    generate(denoiser, noise, sampler, canvas, 6, 13, on_step)
    return denoiser, seen


@pytest.mark.parametrize("num_corrections", [0, 1, 5])
def test_corrections_are_steps_at_time_zero(num_corrections):
    sampler, noise = parts.sampler("self_correcting", num_corrections=num_corrections), parts.process("hybrid")
    canvas = empty(noise, 3)
    assert sampler.num_steps(canvas, 6) == 6 + num_corrections
    times = sampler.times(6 + num_corrections)
    assert times.tolist() == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0, *[0] * num_corrections])
    assert times[6:].tolist() == [0.0] * (num_corrections + 1)
    _, seen = counted(noise, sampler, canvas)
    assert [event.num_steps for event in seen] == [6 + num_corrections] * len(seen)


def test_a_row_that_a_correction_leaves_as_it_is_is_finished():
    """It takes no part in later passes, and the loop ends with the last one."""
    noise = parts.process("hybrid")
    sampler = parts.sampler("self_correcting", correction_temperature=0.0, num_corrections=40)
    denoiser, seen = counted(noise, sampler, empty(noise, 30))
    assert 6 < denoiser.calls == len(seen) < 46
    for event, following in pairwise(seen[6:]):
        changed = (event.before != event.after).any(-1)
        assert torch.equal(following.rows, event.rows[changed])
    assert not (seen[-1].before != seen[-1].after).any()


def test_under_absorbing_noise_one_correction_finds_nothing_to_do():
    noise = parts.process("absorbing")
    denoiser, seen = counted(noise, parts.sampler("self_correcting", num_corrections=7), empty(noise, 30))
    assert denoiser.calls <= 7
    assert len(seen) == 7


def test_a_given_text_costs_no_pass():
    noise = parts.process("hybrid")
    canvas = Canvas(source().sequences, torch.ones_like(source().sequences, dtype=torch.bool))
    denoiser, seen = counted(noise, parts.sampler("self_correcting", num_corrections=7), canvas)
    assert denoiser.calls == 0
    assert seen == []


def test_a_sampler_is_used_again_from_its_first_step():
    """Its settings are frozen, and what it has corrected is in the state alone."""
    noise = parts.process("hybrid")
    sampler = parts.sampler("self_correcting", correction_temperature=0.0, num_corrections=40)
    first, again = (counted(noise, sampler, empty(noise, 30)) for _ in range(2))
    assert first[0].calls == again[0].calls
    assert all(torch.equal(one.after, other.after) for one, other in zip(first[1], again[1], strict=True))
