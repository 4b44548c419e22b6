"""Samplers from scores: the analytic step is the exact posterior, the Euler step its limit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlmkit.generation import generate
from dlmkit.laws.predictions import TablePrediction
from dlmkit.laws.samplers import Exact
from dlmkit.laws.source import all_sequences, index_of
from dlmkit.parameterizations.score import Score
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.randomness import row_noise
from dlmkit.samplers import score_analytic
from dlmkit.samplers.base import Step
from dlmkit.samplers.score_analytic import Scores, tweedie
from dlmkit.samplers.score_tau_leaping import euler
from dlmkit.tensors import categorical
from dlmkit.types import Canvas
from laws import parts
from laws.parts import MASK_ID, VOCAB_SIZE
from laws.tables import LENGTH, source

SCORED = parts.params(case for case in parts.noisy_processes() if case[0] in ("absorbing", "uniform"))
"""Noise under which there are scores."""


def a_step(t: Tensor, s: Tensor, fixed: Tensor) -> Step:
    """The first of two."""
    return Step(0, 2, t, s, fixed, fixed, row_noise(torch.arange(len(t)), 0))


@pytest.mark.parametrize(("process", "schedule"), SCORED)
def test_analytic_step_is_the_ancestral_one_with_the_exact_scores(process, schedule):
    """Undoing the noise in the scores is the posterior, position by position, at every pair of times."""
    data, noise = source(), parts.process(process, schedule)
    for t, s in ((0.9, 0.6), (0.5, 0.45), (0.2, 0.0)):
        at_t = data.marginal(noise, torch.tensor([t], dtype=torch.float64)).flatten()
        states = all_sequences(LENGTH, VOCAB_SIZE)[at_t > 0]
        times = [torch.full((len(states),), time, dtype=torch.float64) for time in (s, t)]
        loo, scores = (
            data.exact_predictor(noise, states, times[1]).table,
            data.exact_score(noise, states, times[1]).table,
        )
        for i in range(LENGTH):
            z, rows = states[:, i], noise.may_change(states[:, i])
            posterior = noise.posterior(z, X0LeaveOneOut().log_x0(loo[:, i], z, times[1], noise).exp(), *times)[rows]
            alpha_s, alpha_t = (noise.alpha(time)[rows] for time in times)
            log_s = Score().log_score(scores[rows, i], z[rows], alpha_t, noise)
            move, weights = tweedie(Scores(log_s, alpha_s, alpha_t), noise)
            stay = posterior.gather(-1, z[rows, None])[:, 0]
            torch.testing.assert_close(move, 1 - stay, rtol=1e-8, atol=1e-10)
            others = posterior.scatter(-1, z[rows, None], 0.0)
            torch.testing.assert_close(
                weights / weights.sum(-1, keepdim=True), others / others.sum(-1, keepdim=True), rtol=1e-8, atol=1e-10
            )


@pytest.mark.parametrize("process", ["absorbing", "uniform"])
def test_euler_and_analytic_steps_agree_to_first_order(process):
    """The chance of a change in a short step, and where to: the difference falls with the square of the step."""
    data, noise = source(), parts.process(process, "cosine")
    states = all_sequences(LENGTH, VOCAB_SIZE)
    states = states[(states != MASK_ID).all(-1)] if process == "uniform" else states[states[:, 0] == MASK_ID]
    t = torch.full((len(states),), 0.6, dtype=torch.float64)
    alpha_t = noise.alpha(t)
    log_s = Score().log_score(data.exact_score(noise, states, t).table[:, 0], states[:, 0], alpha_t, noise)
    first = torch.tensor([True, False, False]).expand(states.shape)
    gaps = []
    for length in (1e-2, 1e-3):
        scores = Scores(log_s, noise.alpha(t - length), alpha_t)
        step = a_step(t, t - length, first)
        chances = [
            move[:, None] * weights / weights.sum(-1, keepdim=True)
            for move, weights in (tweedie(scores, noise), euler(scores, noise, step, first))
        ]
        gaps.append(float((chances[0] - chances[1]).abs().max()))
    assert gaps[0] < 2e-3
    assert gaps[1] < 0.02 * gaps[0]


@pytest.mark.parametrize("name", ["score_analytic", "score_tau_leaping"])
@pytest.mark.parametrize(("process", "schedule"), SCORED)
def test_score_samplers_with_a_wrong_network_leave_no_mask(name, process, schedule):
    """Scores of any size, under every schedule: probabilities stay probabilities, and given tokens stay."""
    noise, num = parts.process(process, schedule), 300
    table = 3 * torch.randn(VOCAB_SIZE**LENGTH, LENGTH, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    table[..., MASK_ID] = float("-inf")
    fixed = torch.tensor([False, False, True]).expand(num, -1)
    canvas = Canvas(torch.full((num, LENGTH), 3), fixed)
    done = generate(
        lambda inputs: TablePrediction(table[index_of(inputs.x_t, VOCAB_SIZE)]),
        noise,
        parts.sampler(name),
        canvas,
        4,
        9,
    )
    assert (done.tokens != MASK_ID).all()
    assert (done.tokens[:, 2] == 3).all()


@pytest.mark.parametrize("name", ["score_analytic", "score_tau_leaping"])
def test_score_samplers_draw_whether_apart_from_which(name, monkeypatch: pytest.MonkeyPatch):
    """Only positions that change are drawn for, in float64, by weights that do not contain the step size."""
    handed = []

    def spy(probs: Tensor, uniform: Tensor) -> Tensor:
        handed.append(probs)
        return categorical(probs, uniform)

    monkeypatch.setattr(score_analytic, "categorical", spy)
    noise = parts.process("absorbing")
    table = torch.tensor([0.9, 0.0, 0.1 - 1e-7, 1e-7]).log().expand(1_000_000, 1, VOCAB_SIZE) + torch.tensor(3.0).log()
    x_t = torch.full((1_000_000, 1), MASK_ID)
    t = torch.full((1_000_000,), 0.5, dtype=torch.float64)
    nothing = torch.zeros_like(x_t, dtype=torch.bool)
    parts.sampler(name).step(
        lambda inputs: TablePrediction(table[: len(inputs.x_t)]), noise, x_t, a_step(t, t - 1e-5, nothing), None
    )
    (probs,) = handed
    assert probs.dtype == torch.float64
    assert 0 < len(probs) < 100  # 20 expected
    share = probs / probs.sum(-1, keepdim=True)
    expected = torch.tensor([0.9, 0.0, 0.1 - 1e-7, 1e-7], dtype=torch.float64)
    torch.testing.assert_close(share, expected.expand(len(probs), -1), rtol=1e-5, atol=0)


def test_scores_are_refused_under_other_noise():
    with pytest.raises(ValueError, match="process=hybrid has no scores"):
        parts.sampler("score_analytic").step(
            Exact(source(), parts.process("hybrid"), X0LeaveOneOut()),
            parts.process("hybrid"),
            torch.full((1, LENGTH), MASK_ID),
            a_step(*torch.tensor([[0.5], [0.4]], dtype=torch.float64), torch.zeros(1, LENGTH, dtype=torch.bool)),
            None,
        )
