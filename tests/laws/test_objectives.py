"""Objectives: with the exact predictor the bound is -log p(x), for each x; with any other it is larger.

The identity behind it is in dlmkit.laws.objectives.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dlmkit.backbones.head import Head, HeadPrediction
from dlmkit.laws import objectives as laws
from dlmkit.laws.objectives import a_batch, integrals, seeded
from dlmkit.laws.predictions import TablePrediction, read_as
from dlmkit.laws.source import Source, all_sequences, channel, index_of, random_source
from dlmkit.objectives.base import Objective
from dlmkit.objectives.elbo import integrand
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.base import ForwardProcess
from dlmkit.types import Prediction
from laws import parts
from laws.asserting import asserting
from laws.parts import MASK_ID, VOCAB_SIZE
from laws.tables import LENGTH, network_without_time, source

TRIPLES = parts.diffusion_triples()
CLOSED = parts.params(triple for triple in TRIPLES if triple[0] != "elbo")
PAIRS = parts.noisy_processes()
law_exact = asserting(laws.law_exact)


def built(name: str, process: str, schedule: str) -> tuple[Objective, ForwardProcess]:
    return parts.objective(name), parts.process(process, schedule)


@pytest.mark.parametrize(("law", "case"), parts.applying(laws.LAWS, parts.objective_cases(), built))
def test_objective(law, case):
    asserting(law)(*built(*case))


@pytest.mark.parametrize("name", sorted({name for name, process, _ in TRIPLES if process == "uniform"}))
def test_bound_is_exact_without_a_mask_token(name):
    process = parts.process("uniform", mask_id=None)
    law_exact(parts.objective(name), process, random_source(LENGTH, VOCAB_SIZE, None))


# Any predictor of x_t alone: the masked bound is a mean over orders, whatever the schedule.


def surprisals(table: Tensor, source: Source) -> dict[tuple[int, ...], Tensor]:
    """For each set M of masked positions: -log p(x^i | x outside M) for i in M, [S, |M|]."""
    out = {}
    for mask in all_sequences(source.length, 2).bool():
        hidden = tuple(mask.nonzero()[:, 0].tolist())
        x_t = source.sequences.masked_fill(mask, MASK_ID)
        log_p = table[index_of(x_t, source.vocab_size)].log_softmax(-1).gather(-1, source.sequences[..., None])[..., 0]
        out[hidden] = -log_p[:, hidden]
    return out


def incomplete_beta(masked: int, clean: int, bottom: float) -> float:
    """The integral of (1 - a)^(masked - 1) a^clean over a in [bottom, 1]."""
    integrand = np.polynomial.Polynomial([1, -1]) ** (masked - 1) * np.polynomial.Polynomial([0, 1]) ** clean
    primitive = integrand.integ()
    return float(primitive(1.0) - primitive(bottom))


@pytest.mark.parametrize("schedule", parts.names("schedule"))
@pytest.mark.parametrize("name", sorted({name for name, process, _ in TRIPLES if process == "absorbing"}))
def test_masked_bound_does_not_move_with_the_schedule(name, schedule):
    data, table, process = source(), network_without_time(), parts.process("absorbing", schedule)
    objective = parts.objective(name)

    def predictor(x_t: Tensor, t: Tensor) -> Prediction:
        below = TablePrediction(table[index_of(x_t, VOCAB_SIZE)])
        return read_as(objective.parameterization, below, process, x_t, t)

    got = integrals(objective, process, data, predictor)

    terms = surprisals(table, data)
    bottom = float(process.alpha(torch.ones(1, dtype=torch.float64)))
    expected = sum(
        values.sum(-1) * incomplete_beta(len(hidden), LENGTH - len(hidden), bottom)
        for hidden, values in terms.items()
        if hidden
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-8)

    # Down to alpha = 0 that is the mean negative log-likelihood over all orders of generation (arXiv 2110.02037), and
    # what a schedule leaves out between 0 and alpha(1) is at most its share of the largest term.
    orders = list(permutations(range(LENGTH)))
    any_order = torch.zeros_like(data.probs)
    for order in orders:
        for done in range(LENGTH):
            hidden = tuple(sorted(order[done:]))
            any_order += terms[hidden][:, hidden.index(order[done])] / len(orders)
    largest = terms[tuple(range(LENGTH))].sum(-1)
    assert ((any_order - got).abs() <= 2 * bottom * largest + 1e-8).all()


@pytest.mark.parametrize("process", sorted({name for name, _ in PAIRS}))
def test_bound_depends_on_alpha_not_on_t(process):
    """A predictor that reads t through alpha alone has the same integral under every schedule, any noise."""
    data, table = source(), network_without_time()

    def integral(schedule: str) -> Tensor:
        noise = parts.process(process, schedule)

        def predictor(x_t: Tensor, t: Tensor) -> TablePrediction:
            return TablePrediction(table[index_of(x_t, VOCAB_SIZE)] * (1 + noise.alpha(t))[:, None, None])

        return integrals(parts.objective("elbo"), noise, data, predictor, bottom=2e-3)

    first, *others = (integral(schedule) for schedule in parts.names("schedule"))
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-8)


# Closed forms equal the generic bound, per token, with their gradients.


@pytest.mark.parametrize(("name", "process", "schedule"), CLOSED)
def test_closed_form_equals_elbo(name, process, schedule):
    noise = parts.process(process, schedule)
    noised, logits = a_batch(noise)
    losses, grads = [], []
    for objective in (parts.objective(name), parts.objective("elbo")):
        table = logits.clone().requires_grad_(True)
        prediction = read_as(objective.parameterization, TablePrediction(table), noise, noised.x_t, noised.t)
        result = objective(prediction, noised, noise)
        losses.append(result)
        grads.append(torch.autograd.grad(result.loss.sum(), table)[0])
    mine, generic = losses
    # In the generic form terms of order 1 cancel and are divided by alpha >= 1e-4.
    torch.testing.assert_close(mine.nll, generic.nll, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(mine.loss, generic.loss, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-10)
    assert torch.isfinite(grads[0]).all()


@pytest.mark.parametrize(("name", "process", "schedule"), CLOSED)
def test_closed_form_equals_elbo_through_hidden_states(name, process, schedule):
    """The same in float32, with the head that training uses, and gradients at hidden states and weights."""
    noise = parts.process(process, schedule, vocab_size=37)
    noised, _ = a_batch(noise)
    results = []
    for objective in (parts.objective(name), parts.objective("elbo")):
        hidden = torch.randn(64, 6, 16, generator=seeded(1)).requires_grad_(True)
        weight = (0.5 * torch.randn(37, 16, generator=seeded(2))).requires_grad_(True)
        bias = torch.randn(37, generator=seeded(3)).requires_grad_(True)
        below = HeadPrediction(hidden, Head(weight, bias), MASK_ID)
        result = objective(read_as(objective.parameterization, below, noise, noised.x_t, noised.t), noised, noise)
        grads = torch.autograd.grad(result.loss.sum() / noised.scored.sum(), (hidden, weight, bias))
        results.append((result.nll.double(), *grads))
    for mine, generic in zip(*results, strict=True):
        torch.testing.assert_close(mine, generic, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("process", "schedule"), parts.params(PAIRS))
def test_integrand_is_the_mean_over_jumps_of_the_naive_form(process, schedule):
    """Two jump processes' relative entropy per time, summed over where the reverse chain may jump.

    Given x_0 the chain runs backwards from z to y at rate r(z) q(y) / q(z), the model's at r(z) p(y) / p(z) (r(z) is
    the forward rate into z). With a for the first and b for the second the cost is sum over y != z of
    a log(a/b) - a + b: the mean over the jumps that are made of a log-ratio that varies from jump to jump, which the
    closed form sums up.
    """
    noise = parts.process(process, schedule)
    noised, logits = a_batch(noise)
    where = noised.scored
    x_0, z = noised.x_0[where], noised.x_t[where]
    t = noised.t[:, None].expand(where.shape)[where]
    alpha, mass = noise.coefficients(t)
    q = alpha[:, None] * F.one_hot(x_0, VOCAB_SIZE) + mass
    p = alpha[:, None] * X0LeaveOneOut().log_x0(logits[where], z, t, noise).exp() + mass
    rate = noise.rate(t).gather(-1, z[:, None])[:, 0]

    a, b = (rate[:, None] * d / d.gather(-1, z[:, None]) for d in (q, p))
    elsewhere = F.one_hot(z, VOCAB_SIZE) == 0
    log_ratio = torch.where(a > 0, a.clamp_min(1e-300).log() - b.clamp_min(1e-300).log(), 0.0)
    naive = torch.where(elsewhere & (rate > 0)[:, None], a * log_ratio - a + b, 0.0).sum(-1)
    torch.testing.assert_close(integrand(q, p, z, rate), naive, rtol=1e-8, atol=1e-9)


# Hybrid noise without uniform noise is absorbing noise under the linear schedule.


def test_hybrid_without_uniform_noise_is_masked():
    hybrid, absorbing = parts.process("hybrid", p_uniform=0.0), parts.process("absorbing", "linear")
    noised, logits = a_batch(absorbing)
    results = []
    for name, noise in (("hybrid", hybrid), ("elbo", hybrid), ("masked", absorbing)):
        table = logits.clone().requires_grad_(True)
        result = parts.objective(name)(TablePrediction(table), noised, noise)
        results.append((result.nll, *torch.autograd.grad(result.loss.sum(), table)))
    for other in results[:2]:
        torch.testing.assert_close(other, results[2], rtol=1e-9, atol=1e-10)


def test_hybrid_tends_to_masked_as_uniform_noise_vanishes():
    """On the same noisy tokens, at the masks; elsewhere the loss goes to zero."""
    absorbing = parts.process("absorbing", "linear")
    noised, logits = a_batch(absorbing)
    masked = parts.objective("masked")(TablePrediction(logits), noised, absorbing).nll
    gaps = []
    for p_uniform in (1e-3, 1e-5, 1e-7):
        noise = parts.process("hybrid", p_uniform=p_uniform)
        nll = parts.objective("hybrid")(TablePrediction(logits), noised, noise).nll
        gaps.append(float((nll - masked).abs().sum() / masked.sum()))
    assert gaps[2] < 1e-4
    assert gaps[2] < 0.05 * gaps[1] < 0.05 * 0.05 * gaps[0]


# Score entropy


def sedd_absorbing(log_s: Tensor, x_0: Tensor, sigma: Tensor, sigma_rate: Tensor) -> Tensor:
    """As SEDD writes it, at a mask: sigma' (sum of s(y) - r log s(x_0) + r (log r - 1)), r = 1 / expm1(sigma)."""
    r = 1 / torch.expm1(sigma)
    return sigma_rate * (log_s.exp().sum(-1) - r * log_s.gather(-1, x_0[:, None])[:, 0] + r * (r.log() - 1))


def test_score_entropy_is_sedds_formula_for_any_scores():
    """Also for scores that come from no distribution."""
    noise = parts.process("absorbing", "geometric")
    noised, raw = a_batch(noise)
    mine = parts.objective("score_entropy")(TablePrediction(raw), noised, noise).nll
    where = (noised.x_t == MASK_ID) & noised.scored
    t = noised.t[:, None].expand(where.shape)[where]
    sigma = -noise.alpha(t).log()
    log_s = raw[where] - torch.expm1(sigma).log()[:, None] - np.log(VOCAB_SIZE - 1)
    sigma_rate = -noise.schedule.derivative(t) / noise.alpha(t)
    expected = sedd_absorbing(log_s, noised.x_0[where], sigma, sigma_rate)
    torch.testing.assert_close(mine[where] / noised.weight[:, None].expand(where.shape)[where], expected)
    assert (mine[~where] == 0).all()


@pytest.mark.parametrize("mask_id", [MASK_ID, None])
def test_score_entropy_is_the_sum_over_jumps_for_any_scores(mask_id):
    """rate * sum over y != z of s - r log s + r (log r - 1), term by term, for uniform noise."""
    noise = parts.process("uniform", "log_linear", mask_id=mask_id)
    noised, raw = a_batch(noise)
    raw = raw if mask_id is not None else raw.nan_to_num(neginf=0.3)
    mine = parts.objective("score_entropy")(TablePrediction(raw), noised, noise).nll
    where = noised.scored
    x_0, z, log_s = noised.x_0[where], noised.x_t[where], raw[where]
    t = noised.t[:, None].expand(where.shape)[where]
    q = channel(noise, t)[torch.arange(len(t)), x_0]
    r = q / q.gather(-1, z[:, None])
    jumps = (F.one_hot(z, VOCAB_SIZE) == 0) & (r > 0)
    terms = log_s.exp() - r * log_s + r * (r.clamp_min(1e-300).log() - 1)
    rate = noise.rate(t).gather(-1, z[:, None])[:, 0]
    expected = rate * torch.where(jumps, terms, 0.0).sum(-1) * noised.weight[:, None].expand(where.shape)[where]
    torch.testing.assert_close(mine[where], expected, rtol=1e-8, atol=1e-8)


def test_a_network_of_zeros_starts_as_a_uniform_prediction():
    """Under absorbing noise its loss is the masked one's of a uniform prediction, at every t."""
    noise = parts.process("absorbing")
    noised, logits = a_batch(noise)
    zeros = TablePrediction(torch.zeros_like(logits).masked_fill(logits.isinf(), float("-inf")))
    mine, masked = (parts.objective(name)(zeros, noised, noise).nll for name in ("score_entropy", "masked"))
    torch.testing.assert_close(mine, masked, rtol=1e-12, atol=1e-12)


# Autoregressive


def test_autoregressive_loss_is_its_nll():
    noised, logits = a_batch(parts.process("none"))
    result = parts.objective("autoregressive")(TablePrediction(logits), noised, parts.process("none"))
    assert torch.equal(result.loss, result.nll)
    assert parts.objective("autoregressive").exact
