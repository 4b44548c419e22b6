"""Parameterizations: each means the leave-one-out posterior of the clean token, by enumeration.

Shapes: B sequences, L positions, N = B * L, V vocabulary, S sequences of the source.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlmkit.laws.predictions import TablePrediction, read_as
from dlmkit.laws.source import Source, all_sequences, channel
from dlmkit.parameterizations.base import Parameterization
from dlmkit.parameterizations.next_token import NextToken
from dlmkit.parameterizations.score import Score, interpolating
from dlmkit.parameterizations.x0 import X0, X0LeaveOneOut
from dlmkit.processes.base import ForwardProcess
from dlmkit.randomness import generator_for
from laws import parts
from laws.parts import MASK_ID, VOCAB_SIZE
from laws.tables import LENGTH, source

NOISES = parts.noisy_processes()
SCORED = parts.params(case for case in NOISES if case[0] in ("absorbing", "uniform"))
"""Noise under which scores are defined."""
DEFINED = [
    pytest.param(kind(), *case, id=f"{kind.__name__}-{'-'.join(case)}")
    for kind in (X0, X0LeaveOneOut, Score)
    for case in NOISES
    if kind is not Score or case[0] != "hybrid"
]
TOKENS = [token for token in range(VOCAB_SIZE) if token != MASK_ID]


def positions(process: ForwardProcess, num: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """Random (log x_theta [N, V], x_t [N], t [N]) where the token may change and may occur, t up to 0.95.

    Near t = 1 the noise hides x_0, and undoing it divides by alpha.
    """
    generator = generator_for("cpu", "positions")
    logits = 2 * torch.randn(num, VOCAB_SIZE, dtype=torch.float64, generator=generator)
    logits[:, MASK_ID] = float("-inf")
    may_occur = process.coefficients(torch.full((1,), 0.5, dtype=torch.float64)).mass[0] > 0
    tokens = may_occur.nonzero()[:, 0]
    t = torch.linspace(0.02, 0.95, num, dtype=torch.float64)
    return logits.log_softmax(-1), tokens[torch.arange(num) % len(tokens)], t


def used(parameterization: Parameterization, x_t: Tensor) -> Tensor:
    """Where raw output has a meaning, bool [N, V]: not at the mask, of scores not at x_t itself."""
    tokens = torch.arange(VOCAB_SIZE)
    where = (tokens != MASK_ID).expand(len(x_t), -1)
    return where & (tokens != x_t[:, None]) if isinstance(parameterization, Score) else where


# Inverses


@pytest.mark.parametrize(("parameterization", "process", "schedule"), DEFINED)
def test_log_x0_undoes_from_log_x0(parameterization, process, schedule):
    noise = parts.process(process, schedule)
    log_x0, x_t, t = positions(noise)
    raw = parameterization.from_log_x0(log_x0, x_t, t, noise)
    assert torch.isfinite(raw[used(parameterization, x_t)]).all()
    torch.testing.assert_close(parameterization.log_x0(raw, x_t, t, noise), log_x0, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("parameterization", "process", "schedule"), DEFINED)
def test_from_log_x0_undoes_log_x0(parameterization, process, schedule):
    """On raw output that some prediction has, up to the constant that a softmax removes."""
    noise = parts.process(process, schedule)
    log_x0, x_t, t = positions(noise)
    raw = parameterization.from_log_x0(log_x0, x_t, t, noise)
    if not isinstance(parameterization, Score):
        raw = raw + torch.randn(len(raw), 1, dtype=torch.float64, generator=generator_for("cpu", "shift"))
    again = parameterization.from_log_x0(parameterization.log_x0(raw, x_t, t, noise), x_t, t, noise)
    if not isinstance(parameterization, Score):
        raw = raw.log_softmax(-1)
    where = used(parameterization, x_t)
    torch.testing.assert_close(again[where], raw[where], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("parameterization", "process", "schedule"), DEFINED)
def test_log_marginal_is_the_noisy_tokens_distribution(parameterization, process, schedule):
    """alpha x_theta + mass, whatever the raw output is."""
    noise = parts.process(process, schedule)
    log_x0, x_t, t = positions(noise)
    raw = parameterization.from_log_x0(log_x0, x_t, t, noise)
    got = parameterization.log_marginal(raw, x_t, t, noise).exp()
    torch.testing.assert_close(got, noise.marginal(log_x0.exp(), t), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("parameterization", [X0(), X0LeaveOneOut(), Score()], ids=lambda one: one.name)
def test_clean_tokens_are_carried_over_under_absorbing_noise(parameterization):
    noise, x_t = parts.process("absorbing"), torch.tensor(TOKENS)
    logits = torch.randn(len(TOKENS), VOCAB_SIZE, dtype=torch.float64, generator=generator_for("cpu", "clean"))
    log_x0 = parameterization.log_x0(logits, x_t, torch.full((len(TOKENS),), 0.5, dtype=torch.float64), noise)
    assert torch.equal(log_x0.exp(), torch.eye(VOCAB_SIZE, dtype=torch.float64)[x_t])


def test_next_token_is_the_softmax():
    noise = parts.process("none")
    logits = torch.randn(9, VOCAB_SIZE, dtype=torch.float64, generator=generator_for("cpu", "next"))
    x_t, t = torch.zeros(9, dtype=torch.int64), torch.ones(9, dtype=torch.float64)
    log_x0 = NextToken().log_x0(logits, x_t, t, noise)
    assert torch.equal(log_x0, logits.log_softmax(-1))
    assert torch.equal(NextToken().from_log_x0(log_x0, x_t, t, noise), log_x0)


# Exact predictions


def states_at(data: Source, noise: ForwardProcess, time: float) -> tuple[Tensor, Tensor]:
    """The x_t that can occur at a time, [B, L], and the time, [B]."""
    occurs = data.marginal(noise, torch.tensor([time], dtype=torch.float64)).flatten() > 0
    x_t = all_sequences(LENGTH, VOCAB_SIZE)[occurs]
    return x_t, torch.full((len(x_t),), time, dtype=torch.float64)


def posterior(data: Source, noise: ForwardProcess, x_t: Tensor, t: Tensor) -> Tensor:
    """log p(x_0^i | x_t) by Bayes over all sequences of the source, [B, L, V]."""
    kernel = channel(noise, t[:1])[0]
    likelihood = torch.stack([kernel[data.sequences[:, j]][:, x_t[:, j]] for j in range(LENGTH)]).prod(0)  # [S, B]
    joint = data.probs[:, None] * likelihood
    share = joint / joint.sum(0)
    table = torch.zeros(len(x_t), LENGTH, VOCAB_SIZE, dtype=torch.float64)
    for i in range(LENGTH):
        table[:, i].index_add_(1, data.sequences[:, i], share.T)
    return table.log()


@pytest.mark.parametrize("time", [0.05, 0.4, 0.9])
@pytest.mark.parametrize(("process", "schedule"), parts.params(NOISES))
def test_posterior_becomes_the_leave_one_out_posterior(process, schedule, time):
    """p(x_0^i | x_t), what plain cross-entropy learns, with the likelihood of the own noisy token divided out."""
    data, noise = source(), parts.process(process, schedule)
    x_t, t = states_at(data, noise, time)
    raw = posterior(data, noise, x_t, t)
    exact = data.exact_predictor(noise, x_t, t).table
    where = noise.may_change(x_t)
    at = t[:, None].expand(x_t.shape)
    got = X0().log_x0(raw[where], x_t[where], at[where], noise)
    torch.testing.assert_close(got.exp(), exact[where].exp(), rtol=1e-9, atol=1e-11)
    back = X0().from_log_x0(exact[where], x_t[where], at[where], noise)
    torch.testing.assert_close(back.exp(), raw[where].exp(), rtol=1e-9, atol=1e-11)
    if time < 0.5 and not noise.mask_only:
        assert float((raw[where].exp() - exact[where].exp()).abs().max()) > 0.01  # there is something to divide out


@pytest.mark.parametrize("time", [0.05, 0.4, 0.9])
@pytest.mark.parametrize(("process", "schedule"), SCORED)
def test_exact_scores_become_the_leave_one_out_posterior(process, schedule, time):
    """Scores from their definition, ratios of p_t, enumerated."""
    data, noise = source(), parts.process(process, schedule)
    x_t, t = states_at(data, noise, time)
    where = noise.may_change(x_t)
    raw, exact = (one.table[where] for one in (data.exact_score(noise, x_t, t), data.exact_predictor(noise, x_t, t)))
    got = Score().log_x0(raw, x_t[where], t[:, None].expand(x_t.shape)[where], noise)
    torch.testing.assert_close(got.exp(), exact.exp(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("process", ["absorbing", "uniform"])
def test_exact_scores_are_those_of_the_exact_prediction(process):
    """The definition by enumeration against the identity that the law of closed forms rests on."""
    data, noise = source(), parts.process(process)
    x_t, t = states_at(data, noise, 0.4)
    exact = data.exact_predictor(noise, x_t, t)
    where = noise.may_change(x_t)
    by_prediction = read_as(Score(), exact, noise, x_t, t).logits(where)
    torch.testing.assert_close(by_prediction, data.exact_score(noise, x_t, t).table[where], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("parameterization", [X0(), X0LeaveOneOut(), Score()], ids=lambda one: one.name)
@pytest.mark.parametrize("process", ["absorbing", "uniform"])
def test_a_source_is_exact_in_every_parameterization(parameterization, process):
    data, noise = source(), parts.process(process)
    x_t, t = states_at(data, noise, 0.4)
    where, at = noise.may_change(x_t), t[:, None].expand(x_t.shape)
    raw = data.exact(parameterization, noise, x_t, t).table[where]
    got = parameterization.log_x0(raw, x_t[where], at[where], noise)
    exact = data.exact_predictor(noise, x_t, t).table[where]
    torch.testing.assert_close(got.exp(), exact.exp(), rtol=1e-8, atol=1e-10)


def test_a_prediction_is_reparameterized_position_by_position():
    """`read_as` has the logits, the log-probabilities and the chunks of the raw output."""
    noise = parts.process("uniform")
    x_t, t = states_at(source(), noise, 0.4)
    table = torch.randn(len(x_t), LENGTH, VOCAB_SIZE, dtype=torch.float64, generator=generator_for("cpu", "table"))
    table[..., MASK_ID] = float("-inf")
    where = torch.rand(x_t.shape, generator=generator_for("cpu", "where")) < 0.6
    read = read_as(X0(), TablePrediction(table), noise, x_t, t)
    at = t[:, None].expand(x_t.shape)[where]
    raw = X0().from_log_x0(table[where].log_softmax(-1), x_t[where], at, noise)
    torch.testing.assert_close(read.logits(where), raw)
    tokens = torch.full_like(x_t, 2)
    torch.testing.assert_close(read.token_log_prob(tokens, where), raw.log_softmax(-1)[:, 2])
    first = read.map_logits(lambda logits, times: logits[:, 0] * times, where, at)
    torch.testing.assert_close(first, raw[:, 0] * at)
    assert read_as(X0LeaveOneOut(), read, noise, x_t, t) is read


# Scores


def test_scores_without_information_give_a_uniform_prediction():
    """Under uniform noise all scores are 1 at alpha = 0, where x_0 is lost."""
    noise, x_t = parts.process("uniform", "linear"), torch.tensor(TOKENS)
    ones = torch.zeros(len(TOKENS), VOCAB_SIZE, dtype=torch.float64)
    log_x0 = Score().log_x0(ones, x_t, torch.ones(len(TOKENS), dtype=torch.float64), noise)
    expected = torch.full((len(TOKENS), VOCAB_SIZE), 1 / len(TOKENS), dtype=torch.float64)
    expected[:, MASK_ID] = 0.0
    torch.testing.assert_close(log_x0.exp(), expected)


@pytest.mark.parametrize("process", ["absorbing", "uniform"])
def test_own_token_and_mask_have_no_score(process):
    noise = parts.process(process)
    _, x_t, t = positions(noise)
    raw = torch.randn(len(x_t), VOCAB_SIZE, dtype=torch.float64, generator=generator_for("cpu", "raw"))
    log_s = Score().log_score(raw, x_t, noise.alpha(t), noise)
    assert torch.equal(log_s.isfinite(), used(Score(), x_t))


@pytest.mark.parametrize("process", ["hybrid", "none"])
def test_scores_are_refused_where_they_are_not_defined(process):
    with pytest.raises(ValueError, match=rf"process={process} has no scores: .* set process=absorbing"):
        interpolating(parts.process(process))


# Agreement

KINDS = {"x0": X0(), "x0_loo": X0LeaveOneOut(), "score": Score(), "next": NextToken()}


@pytest.mark.parametrize("process", parts.names("process"))
def test_parameterizations_agree_with_their_own_kind(process):
    """Besides, the two predictions of x_0 are the same under noise that only masks."""
    noise = parts.process(process)
    assert {name: kind.name for name, kind in KINDS.items()} == {name: name for name in KINDS}
    for one, mine in KINDS.items():
        for other, theirs in KINDS.items():
            both_x0 = {one, other} <= {"x0", "x0_loo"}
            assert mine.agrees_with(theirs, noise) == (one == other or (both_x0 and process == "absorbing"))
