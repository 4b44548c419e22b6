"""Discrete time: the bound of a chain of T steps, by brute force, and its limit."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dlmkit.laws.discrete_time import law_steps
from dlmkit.laws.objectives import integrals, prior_kl
from dlmkit.laws.predictions import TablePrediction
from dlmkit.laws.quadrature import Nodes
from dlmkit.laws.samplers import Exact, distribution_after
from dlmkit.laws.source import (
    Source,
    all_sequences,
    channel,
    index_of,
    noised_everywhere,
    sum_by,
)
from dlmkit.objectives.discrete import DiscreteTimeElbo
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.base import ForwardProcess
from dlmkit.step import discretise
from laws import parts
from laws.asserting import asserting
from laws.parts import VOCAB_SIZE
from laws.tables import LENGTH, network_without_time, source

NOISES = sorted({name for name, _ in parts.noisy_processes()})
PAIRS = parts.params(parts.noisy_processes())


@pytest.mark.parametrize(("process", "schedule"), PAIRS)
def test_law(process, schedule):
    asserting(law_steps)(parts.objective("discrete"), parts.process(process, schedule))


def sum_of_terms(objective: DiscreteTimeElbo, process: ForwardProcess, data: Source, predictor_of) -> Tensor:
    """The objective's mean over its T times, for each x, [S]."""
    num = objective.num_steps
    t = torch.arange(1, num + 1, dtype=torch.float64) / num
    noised, share, sequence = noised_everywhere(data, process, Nodes(t, torch.full_like(t, 1 / num)))
    nll = objective(predictor_of(noised.x_t, noised.t), noised, process).nll
    return sum_by(share * nll.sum(-1), sequence, len(data.probs))


def brute_force(num_steps: int, process: ForwardProcess, data: Source, predictor_of) -> Tensor:
    """Sum over steps of E KL(q(x_s | x_t, x_0) || p(x_s | x_t)), from matrices of the chain and Bayes' rule alone."""
    x_0, states = data.sequences, all_sequences(LENGTH, VOCAB_SIZE)
    total = torch.zeros(len(x_0), dtype=torch.float64)
    for step in range(1, num_steps + 1):
        t, s = (torch.tensor([i / num_steps], dtype=torch.float64) for i in (step, step - 1))
        at_t, at_s = channel(process, t)[0], channel(process, s)[0]
        alpha_t, mass_t = process.coefficients(t)
        alpha_s, mass_s = process.coefficients(s)
        jump = (alpha_t / alpha_s) * torch.eye(VOCAB_SIZE) + (mass_t - alpha_t / alpha_s * mass_s)  # q(x_t | x_s)
        # given[x_0, x_t, x_s] = q(x_s | x_0) q(x_t | x_s) / q(x_t | x_0)
        joint = at_s[:, None, :] * jump.T[None]
        given = joint / joint.sum(-1, keepdim=True).clamp_min(1e-300)
        table = predictor_of(states, t.expand(len(states))).table
        for i in range(LENGTH):
            z = states[:, i]
            log_x = X0LeaveOneOut().log_x0(table[:, i], z, t.expand(len(z)), process)
            # p(x_s | x_t) is Bayes' rule with the predicted distribution of x_0.
            weights = (log_x.exp() @ at_s) * jump[:, z].T
            p = weights / weights.sum(-1, keepdim=True)
            for k, x in enumerate(x_0):
                chance = at_t[x[:, None], states.T].prod(0)
                q = given[x[i], z]
                kl = torch.where(q > 0, q * (q.clamp_min(1e-300) / p.clamp_min(1e-300)).log(), 0.0).sum(-1)
                total[k] += torch.where(chance > 0, chance * kl, 0.0).sum()
    return total


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize(("process", "schedule"), PAIRS)
def test_terms_are_those_of_the_chain(process, schedule, num_steps):
    data, table, noise = source(), network_without_time(), parts.process(process, schedule)

    def predictor(x_t: Tensor, t: Tensor) -> TablePrediction:
        return TablePrediction(table[index_of(x_t, VOCAB_SIZE)] * (1 + t)[:, None, None])

    got = sum_of_terms(DiscreteTimeElbo(num_steps), noise, data, predictor)
    torch.testing.assert_close(got, brute_force(num_steps, noise, data, predictor), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_steps", [1, 4, 16])
@pytest.mark.parametrize("process", NOISES)
def test_bound_is_above_what_the_chain_generates(process, num_steps):
    """For each text -log of its probability under T ancestral steps is at most the bound."""
    data, noise = source(), parts.process(process)
    bound = sum_of_terms(
        DiscreteTimeElbo(num_steps), noise, data, lambda x_t, t: data.exact_predictor(noise, x_t, t)
    ) + prior_kl(data, noise)
    generated = distribution_after(num_steps, Exact(data, noise, X0LeaveOneOut()), noise, parts.sampler("ancestral"))
    exact = -generated[index_of(data.sequences, VOCAB_SIZE)].log()
    # Of the mean over texts: for one text, too, but the chain starts from the prior and the bound's from p_1.
    assert float((data.probs * (bound - exact)).sum()) > -1e-9


@pytest.mark.parametrize("process", NOISES)
def test_more_steps_tighten_the_bound_towards_continuous_time(process):
    data, noise = source(), parts.process(process)

    def exact(x_t: Tensor, t: Tensor) -> TablePrediction:
        return data.exact_predictor(noise, x_t, t)

    limit = float((data.probs * integrals(parts.objective("elbo"), noise, data, exact)).sum())
    excess = [
        float((data.probs * sum_of_terms(DiscreteTimeElbo(num), noise, data, exact)).sum()) - limit
        for num in (4, 16, 64, 256)
    ]
    assert excess[0] > excess[1] > excess[2] > excess[3] > 0
    for coarse, fine in pairwise(excess):  # first order in 1 / T, for uniform noise up to a log
        assert 0.15 < fine / coarse < 0.5
    assert excess[3] < 0.02 * limit


def test_times_are_rounded_up_to_multiples():
    t = discretise(torch.tensor([1e-9, 0.1, 0.25, 0.2500001, 0.6, 0.75, 0.9, 1.0], dtype=torch.float64), 4)
    assert t.tolist() == [0.25, 0.25, 0.25, 0.5, 0.75, 0.75, 1.0, 1.0]
    for num in (3, 7, 1000):
        grid = torch.arange(1, num + 1, dtype=torch.float64) / num
        assert torch.equal(discretise(grid, num), grid)
        assert torch.equal(discretise(grid / 3, None), grid / 3)
    with pytest.raises(ValueError, match="num_steps 0"):
        DiscreteTimeElbo(0)


@pytest.mark.parametrize("process", NOISES)
def test_one_step_is_a_reconstruction_of_every_token(process):
    """T = 1: from pure noise to data in one draw, each token from its own distribution."""
    data, noise = source(), parts.process(process)
    got = sum_of_terms(DiscreteTimeElbo(1), noise, data, lambda x_t, t: data.exact_predictor(noise, x_t, t))
    alone = torch.stack([data.joint.sum([j for j in range(LENGTH) if j != i]) for i in range(LENGTH)])
    expected = -alone.log().gather(1, data.sequences.T).sum(0)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
