"""Objectives: with the exact predictor the bound is -log p(x), for each x; with any other it is larger.

The identity. Let q(path | x) be the noising chain from x and q(path) the same from x ~ p. Their ratio is 1 / p(x) on
every path that starts at x. Read from t = 1 backwards, q(path) is the chain with the exact reverse rates, started from
p_1, the marginal of the noisy data at t = 1. Taking the log of the ratio and its mean under q(path | x),

    -log p(x) = KL(q_1(. | x) || p_1) + integral over [0, 1] of E[nll(x_t)] dt.

The first term is zero when alpha(1) = 0; for the other schedules it is enumerated here, so that nothing is left to a
tolerance. The integrals are Gauss-Legendre sums over t, the expectations sums over all x_t: no Monte Carlo anywhere.

Shapes: B batch, L length, V vocabulary (small), S sequences of the source. Losses are nats.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dlmkit.backbones.head import Head, HeadPrediction
from dlmkit.laws.autoregressive import law_next_token
from dlmkit.laws.diagnosis import diagnosis
from dlmkit.laws.findings import Finding, at_least, at_most, holds, law, relative, worst_at
from dlmkit.laws.predictions import TablePrediction, read_as
from dlmkit.laws.quadrature import nodes
from dlmkit.laws.source import Source, all_sequences, channel, index_of, noised_everywhere, sum_by
from dlmkit.laws.toys import Predictor, a_batch, exact_predictor, losses_of, seeded, toy_source
from dlmkit.objectives.base import Objective
from dlmkit.objectives.elbo import GenericElbo
from dlmkit.processes.base import ForwardProcess
from dlmkit.types import Noised


def prior_kl(source: Source, process: ForwardProcess) -> Tensor:
    """Return KL(q_1(. | x) || p_1) for each x of the source, [S]."""
    one = torch.ones(1, dtype=torch.float64)
    kernel = channel(process, one)[0]
    x_0, x_1 = source.sequences, all_sequences(source.length, source.vocab_size)
    q = torch.ones(len(x_0), len(x_1), dtype=torch.float64)
    for i in range(source.length):
        q *= kernel[x_0[:, i, None], x_1[None, :, i]]
    p = source.marginal(process, one)[0].flatten()
    return torch.where(q > 0, q * (q.clamp_min(1e-300) / p.clamp_min(1e-300)).log(), 0.0).sum(-1)


def integrals(
    objective: Objective[Any],
    process: ForwardProcess,
    source: Source,
    predictor: Predictor,
    bottom: float | None = None,
) -> Tensor:
    """Return the integral over t (down to alpha = `bottom`) of E[nll], for each x of the source, [S]."""
    top = float(process.alpha(torch.zeros(1, dtype=torch.float64)))
    noised, share, sequence = noised_everywhere(source, process, nodes(process, top=top, bottom=bottom))
    nll = objective(predictor(noised.x_t, noised.t), noised, process).nll
    if nll.shape != noised.x_t.shape:
        raise ValueError(f"nll has shape {tuple(nll.shape)}, not [B, L] = {tuple(noised.x_t.shape)}")
    return sum_by(share * nll.detach().double().sum(-1), sequence, len(source.probs))


# Where laws do not apply


def no_noise(objective: Objective[Any], process: ForwardProcess) -> str | None:
    """Return why laws about noise do not apply."""
    return None if process.has_noise else "there is no noise"


def no_integral(objective: Objective[Any], process: ForwardProcess) -> str | None:
    """Return why laws about an integral over t do not apply."""
    if objective.num_steps is not None:
        return "its bound is in discrete time, larger by what T steps cost"
    return no_noise(objective, process)


def no_blocks(objective: Objective[Any], process: ForwardProcess) -> str | None:
    """Return why laws about blocks do not apply."""
    return None if objective.block_size is not None else "it has no blocks"


# Laws of the nll


@law(unless=no_integral)
def law_exact(objective: Objective[Any], process: ForwardProcess, source: Source | None = None) -> Iterator[Finding]:
    """With the exact predictor the bound is -log p(x), for each x."""
    source = source or toy_source(process)
    bound = prior_kl(source, process)
    bound = bound + integrals(objective, process, source, exact_predictor(objective, process, source))
    error = (bound + source.probs.log()).abs().nan_to_num(nan=float("inf"))
    worst = int(error.argmax())
    yield at_most(
        "exact predictor: bound = -log p(x)",
        error[worst],
        1e-8,
        lambda: (
            f"the bound of {source.sequences[worst].tolist()} is {float(bound[worst]):.5g} nats, -log p is"
            f" {-float(source.probs[worst].log()):.5g}; {diagnosis(objective, process)}"
        ),
    )


@law(unless=no_integral)
def law_larger(objective: Objective[Any], process: ForwardProcess, source: Source | None = None) -> Iterator[Finding]:
    """Any other predictor has a larger bound, by the square of its error: a minimum is flat."""
    source = source or toy_source(process)
    exact, excess = exact_predictor(objective, process, source), []
    size, length = source.vocab_size, source.length
    for seed, spread in ((0, 0.02), (1, 0.1), (2, 0.5), (3, 2.0)):
        table = spread * torch.randn(size**length, length, size, dtype=torch.float64, generator=seeded(seed))

        def perturbed(x_t: Tensor, t: Tensor, table: Tensor = table) -> TablePrediction:
            logits = exact(x_t, t).logits(torch.ones_like(x_t, dtype=torch.bool)).reshape(*x_t.shape, size)
            return TablePrediction(logits + table[index_of(x_t, size)])

        bound = prior_kl(source, process) + integrals(objective, process, source, perturbed)
        excess.append(float((source.probs * bound).sum()) - source.entropy)
    yield at_least(
        "other predictors have a larger bound",
        min(excess),
        1e-6,
        f"a wrong predictor scores {-min(excess):.3g} nats better than the entropy allows: the nll is no bound",
    )
    growth = excess[0] / excess[1] if excess[1] > 0 else float("inf")
    yield at_most(
        "the excess grows as the square", growth, 0.1, "the bound's minimum is not at the exact predictor, or not flat"
    )
    grows = all(smaller < larger for smaller, larger in pairwise(excess))
    yield holds("a worse predictor has a larger bound", grows, "a predictor further from the truth has a lower bound")


@law(unless=no_integral)
def law_closed_form(objective: Objective[Any], process: ForwardProcess) -> Iterator[Finding]:
    """The nll equals the generic bound's, token by token."""
    noised, logits = a_batch(process)
    mine = losses_of(objective, TablePrediction(logits), noised, process).nll.double()
    generic = GenericElbo()(TablePrediction(logits), noised, process).nll
    # In the generic form terms of order 1 cancel and are divided by alpha >= 1e-4.
    error, _ = worst_at(relative(mine, generic, 1e-9, 1e-10), noised.t)
    yield at_most("nll = generic bound, per token", error, 1e-9, lambda: diagnosis(objective, process))


@law()
def law_scored(objective: Objective[Any], process: ForwardProcess) -> Iterator[Finding]:
    """Only scored positions have a loss; nll is detached and positive, loss differentiable, total the sum of loss."""
    noised, logits = a_batch(process)
    table = logits.requires_grad_(True)
    result = losses_of(objective, TablePrediction(table), noised, process)
    for name, value in (("loss", result.loss), ("nll", result.nll)):
        shaped = value.shape == noised.x_0.shape
        yield holds("loss and nll are [B, L]", shaped, f"{name} has shape {tuple(value.shape)}, not [B, L]")
        if not shaped:
            return
        unscored = float(value.detach()[~noised.scored].abs().max())
        yield at_most(
            "unscored positions have no loss", unscored, 0.0, f"{name} is up to {unscored:.3g} where scored is False"
        )
    lowest = float(result.nll[noised.scored].min())
    yield at_most("nll >= 0", -lowest, 1e-12, f"nll is {lowest:.3g} somewhere: no bound on -log p goes below 0")
    yield holds("nll is detached", not result.nll.requires_grad, "nll has a gradient: return nll.detach()")
    yield holds("loss has a gradient", result.loss.requires_grad, "loss has no gradient: nothing would be learned")
    if result.loss.requires_grad:
        (of_loss,) = torch.autograd.grad(result.loss.sum(), table, retain_graph=True)
        (grad,) = torch.autograd.grad(result.total, table)
        yield holds("gradients are finite", torch.isfinite(grad).all(), "a gradient is infinite or NaN")
        leaks = float(grad[~noised.scored].abs().max())
        yield at_most(
            "unscored positions have no gradient", leaks, 0.0, f"a gradient of {leaks:.3g} where nothing is scored"
        )
        error = max(
            float(relative(result.total.detach(), result.loss.detach().sum(), 1e-9, 1e-12)),
            float(relative(grad, of_loss, 1e-9, 1e-12).max()),
        )
        yield at_most(
            "total = sum of loss",
            error,
            1e-9,
            f"`fused` or its gradient is off by {error:.2g} from the sum of `loss`, which is logged",
        )


@law(unless=no_noise)
def law_weight(objective: Objective[Any], process: ForwardProcess) -> Iterator[Finding]:
    """The time sampler's weight multiplies loss and nll."""
    noised, logits = a_batch(process)
    plain = Noised(noised.x_0, noised.x_t, noised.t, noised.scored, torch.ones_like(noised.t))
    weighted, unweighted = (losses_of(objective, TablePrediction(logits), batch, process) for batch in (noised, plain))
    for name in ("loss", "nll"):
        want = getattr(unweighted, name).detach() * noised.weight[:, None]
        error, where = worst_at(relative(getattr(weighted, name).detach(), want, 1e-12, 1e-14), noised.t)
        yield at_most(
            "the time sampler's weight multiplies",
            error,
            1e-12,
            f"{name} at t = {where:.3g} is not noised.weight times what it is at weight 1: its mean over t is wrong",
        )


@law(unless=no_noise)
def law_float32(objective: Objective[Any], process: ForwardProcess) -> Iterator[Finding]:
    """In float32, through the head that training uses, nll and gradient are those of float64."""
    noised, _ = a_batch(process)
    hidden = torch.randn(*noised.x_0.shape, 16, generator=seeded(1)).requires_grad_(True)
    weight = 0.5 * torch.randn(process.vocab_size, 16, generator=seeded(2))
    hidden64 = hidden.detach().double().requires_grad_(True)
    logits = hidden64 @ weight.double().T
    if process.mask_id is not None:
        logits = logits.index_fill(-1, torch.tensor([process.mask_id]), float("-inf"))
    head = HeadPrediction(hidden, Head(weight), process.mask_id)
    got = losses_of(objective, head, noised, process)
    want = losses_of(objective, TablePrediction(logits), noised, process)
    error, where = worst_at(relative(got.nll.double(), want.nll.double(), 1e-4, 2e-5), noised.t)
    yield at_most("float32 head: same nll", error, 1e-4, f"in float32 the nll at t = {where:.4g} is off by {error:.2g}")
    (grad,) = torch.autograd.grad(got.total, hidden)
    (grad64,) = torch.autograd.grad(want.total, hidden64)
    error, where = worst_at((grad - grad64).abs() / (grad64.abs().amax(-1, keepdim=True) + 1e-2), noised.t)
    yield at_most(
        "float32 head: same gradient",
        error,
        1e-3,
        f"in float32 the loss's gradient at t = {where:.4g} is off by a share of {error:.2g}",
    )


# Laws of the loss, which may weight times differently


@law(unless=no_integral)
def law_truth_is_stationary(objective: Objective[Any], process: ForwardProcess) -> Iterator[Finding]:
    """At the exact predictor the mean gradient of the loss is zero, for every x_t: it is a stationary point."""
    source = toy_source(process)
    noised, share, sequence = noised_everywhere(source, process, nodes(process, num=6))
    everywhere = torch.ones_like(noised.x_t, dtype=torch.bool)
    logits = exact_predictor(objective, process, source)(noised.x_t, noised.t).logits(everywhere)
    table = logits.reshape(*noised.x_t.shape, -1).clone().requires_grad_(True)
    chance = share * source.probs[sequence]
    loss = objective(TablePrediction(table), noised, process).loss
    (grad,) = torch.autograd.grad((chance[:, None] * loss).sum(), table)
    times, time = noised.t.unique(return_inverse=True)
    num_states = source.vocab_size**source.length
    state = time * num_states + index_of(noised.x_t, source.vocab_size)
    total = torch.zeros(len(times) * num_states, *grad.shape[1:], dtype=grad.dtype)
    size = torch.zeros_like(total)
    total.index_add_(0, state, grad)
    size.index_add_(0, state, grad.abs())
    error, where = worst_at(total.abs().reshape(len(times), -1) / size.max().clamp_min(1e-300), times)
    yield at_most(
        "loss is stationary at the truth",
        error,
        1e-9,
        f"at t = {where:.3g} the loss pulls away from the exact predictor: training learns something else",
    )


@law()
def law_rows_apart(objective: Objective[Any], process: ForwardProcess) -> Iterator[Finding]:
    """A sequence's loss does not depend on what else is in the micro-batch."""
    noised, logits = a_batch(process)
    whole = losses_of(objective, TablePrediction(logits), noised, process)
    for rows in (slice(0, 24), slice(24, 25), slice(25, 64)):
        piece = Noised(noised.x_0[rows], noised.x_t[rows], noised.t[rows], noised.scored[rows], noised.weight[rows])
        alone = losses_of(objective, TablePrediction(logits[rows]), piece, process)
        for name in ("loss", "nll"):
            got, want = getattr(alone, name).detach(), getattr(whole, name).detach()[rows]
            error, _ = worst_at(relative(got, want, 1e-9, 1e-10), piece.t)
            yield at_most(
                "same loss in any micro-batch",
                error,
                1e-9,
                f"{name} of a sequence changes with its batch: return sums, the module divides by scored tokens",
            )


@law(unless=no_noise)
def law_nothing_to_score(objective: Objective[Any], process: ForwardProcess) -> Iterator[Finding]:
    """A batch without scored tokens has loss zero, and raises nothing."""
    noised, logits = a_batch(process)
    empty = Noised(noised.x_0, noised.x_0, noised.t, torch.zeros_like(noised.scored), noised.weight)
    head = Head(torch.randn(process.vocab_size, 8, generator=seeded(1)))
    hidden = torch.randn(*noised.x_0.shape, 8, generator=seeded(2))
    for prediction in (TablePrediction(logits), HeadPrediction(hidden, head, process.mask_id)):
        cost = float(losses_of(objective, prediction, empty, process).loss.sum())
        yield at_most("nothing scored, no loss", abs(cost), 0.0, f"a batch without scored tokens has loss {cost:.3g}")


@law(unless=no_blocks)
def law_blocks(objective: Objective[Any], process: ForwardProcess) -> Iterator[Finding]:
    """The loss of a block is that of the block alone, at its own time (the other laws have one block)."""
    noised, logits = a_batch(process)
    alone = losses_of(objective, TablePrediction(logits), noised, process)
    pair = (len(noised.t) // 2, -1)  # sequences of two blocks
    table = read_as(objective.parameterization, TablePrediction(logits), process, noised.x_t, noised.t)
    everywhere = torch.ones_like(noised.scored)
    joined = Noised(*(getattr(noised, name).reshape(pair) for name in ("x_0", "x_t", "t", "scored", "weight")))
    prediction = TablePrediction(table.logits(everywhere).reshape(*joined.x_0.shape, -1))
    together = objective(prediction, joined, process)
    for name in ("loss", "nll"):
        got, want = getattr(together, name).detach(), getattr(alone, name).detach().reshape(pair)
        error = float("inf") if got.shape != want.shape else float(relative(got, want, 1e-9, 1e-10).max())
        yield at_most(
            "loss of a block = of the block alone", error, 1e-9, f"{name} of a block changes with its neighbour"
        )


LAWS = [
    law_exact,
    law_larger,
    law_closed_form,
    law_truth_is_stationary,
    law_scored,
    law_weight,
    law_float32,
    law_rows_apart,
    law_nothing_to_score,
    law_blocks,
    law_next_token,
]
"""Of an objective and a process that it holds for."""
