"""Samplers: with the exact predictor the samples have the data's distribution, and what is given stays.

The distribution of T steps of ancestral sampling is computed exactly, by pushing all V^L states through the posterior,
so that its distance to the data and its fall with T carry no sampling noise. That the code draws from this distribution
is then a chi-square test.
"""

from __future__ import annotations

import pytest
import torch

from dlmkit.generation import generate
from dlmkit.laws import pairing
from dlmkit.laws import samplers as laws
from dlmkit.laws.findings import FALSE_ALARM
from dlmkit.laws.samplers import Exact, counts_of, distribution_after, empty, step_rows, total_variation
from dlmkit.laws.source import all_sequences
from dlmkit.laws.statistics import chi_square_p
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.base import ForwardProcess
from dlmkit.randomness import row_noise
from dlmkit.samplers.base import Sampler, Step
from laws import parts
from laws.asserting import asserting
from laws.parts import VOCAB_SIZE
from laws.tables import LENGTH, source

NOISES = parts.params(parts.noisy_processes())
CASES = parts.sampler_cases()
RUNS = parts.params(CASES)

# The chain, exactly


@pytest.mark.parametrize(("process", "schedule"), NOISES)
def test_ancestral_chain_tends_to_the_data(process, schedule):
    data, noise = source(), parts.process(process, schedule)
    distances = [
        total_variation(
            distribution_after(num_steps, Exact(data, noise, X0LeaveOneOut()), noise, parts.sampler("ancestral")),
            data.joint.flatten(),
        )
        for num_steps in (1, 16, 64, 256)
    ]
    # The chain starts from pure noise, the data's noisy marginal at t = 1 has alpha(1) of each token left.
    left = LENGTH * float(noise.alpha(torch.ones(1, dtype=torch.float64)))
    assert distances[3] < 0.02 + left
    assert distances[0] > 0.1  # one step draws the positions independently, which is wrong for this source
    # First-order convergence: the error is that of drawing two positions in one step.
    for coarse, fine in ((distances[1], distances[2]), (distances[2], distances[3])):
        assert fine < 0.35 * coarse + left


@pytest.mark.parametrize("schedule", parts.names("schedule"))
def test_absorbing_error_is_at_most_the_chance_of_two_tokens_in_a_step(schedule):
    data, noise, sampler = source(), parts.process("absorbing", schedule), parts.sampler("ancestral")
    for num_steps in (4, 32):
        unmasked = noise.alpha(sampler.times(num_steps)).diff()
        together = LENGTH * (LENGTH - 1) / 2 * float((unmasked**2).sum())
        left = LENGTH * float(noise.alpha(torch.ones(1, dtype=torch.float64)))
        after = distribution_after(num_steps, Exact(data, noise, X0LeaveOneOut()), noise, sampler)
        assert total_variation(after, data.joint.flatten()) <= together + left


@pytest.mark.parametrize("num_steps", [1, 3, 10])
@pytest.mark.parametrize("process", [name for name in parts.names("process") if parts.process(name).has_noise])
def test_ancestral_draws_from_its_chain(process, num_steps):
    data, noise, sampler = source(), parts.process(process), parts.sampler("ancestral")
    expected = distribution_after(num_steps, Exact(data, noise, X0LeaveOneOut()), noise, sampler)
    num = 20_000
    canvas = generate(
        Exact(data, noise, X0LeaveOneOut()),
        noise,
        sampler,
        empty(noise, num),
        num_steps,
        num_steps,
    )
    assert chi_square_p(counts_of(canvas.tokens, VOCAB_SIZE), expected * num) > FALSE_ALARM


@pytest.mark.parametrize(("process", "schedule"), NOISES)
def test_one_ancestral_step_follows_the_posterior(process, schedule):
    """From every state that can occur, with nothing given."""
    data, noise = source(), parts.process(process, schedule)
    s, t, repeats = 0.35, 0.6, 2_000
    at_t = data.marginal(noise, torch.tensor([t], dtype=torch.float64)).flatten()
    states = all_sequences(LENGTH, VOCAB_SIZE)[at_t > 0][::5]
    expected = step_rows(Exact(data, noise, X0LeaveOneOut()), noise, states, s, t)
    x_t = states.repeat_interleave(repeats, 0)
    times = (torch.full((len(x_t),), time, dtype=torch.float64) for time in (t, s))
    nothing = torch.zeros_like(x_t, dtype=torch.bool)
    step = Step(0, 1, *times, nothing, nothing, row_noise(torch.arange(len(x_t)), 0))
    done = parts.sampler("ancestral").step(Exact(data, noise, X0LeaveOneOut()), noise, x_t, step, None)
    for state, row in zip(done.tokens.split(repeats), expected, strict=True):
        assert chi_square_p(counts_of(state, VOCAB_SIZE), row * repeats) > FALSE_ALARM


# Every sampler


def built(name: str, process: str) -> tuple[Sampler, ForwardProcess]:
    return parts.sampler(name), parts.process(process)


@pytest.mark.parametrize(("law", "case"), parts.applying(pairing.SAMPLER_LAWS, CASES, built))
def test_sampler(law, case):
    asserting(law)(*built(*case))


@pytest.mark.parametrize(("name", "process"), RUNS)
def test_tokens_are_drawn_in_float64(name, process):
    asserting(laws.law_tail)(parts.sampler(name), parts.process(process, vocab_size=laws.WIDE))


@pytest.mark.parametrize("name", parts.names("sampler"))
def test_times_run_from_noise_to_data(name):
    asserting(laws.law_times)(parts.sampler(name))
