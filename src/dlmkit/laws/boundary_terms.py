"""Boundary terms of the NELBO: with them evaluation sums to a bound, whose excess over the entropy is enumerated.

With I the mutual information of x and its noisy versions x_t at t = 0 and t = 1, the exact predictor has on average

    reconstruction = H(x) - I(x; x_t=0) + C_0,   integral = I(x; x_t=0) - I(x; x_t=1),   prior = I(x; x_t=1) + C_1,

which sum to the entropy H(x) but for C_0 and C_1, the excess of drawing the tokens at an end independently: the
divergence of p(x | x_t=0) from the product of its marginals, and of the marginal of x_t=1 from where generation starts.
Everything is enumerated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dlmkit.evaluation.boundary_terms import prior, reconstruction
from dlmkit.laws.findings import Finding, at_most, law
from dlmkit.laws.objectives import integrals, no_integral
from dlmkit.laws.quadrature import Nodes
from dlmkit.laws.source import Source, channel, noised_everywhere, sum_by
from dlmkit.laws.toys import exact_predictor, toy_source
from dlmkit.objectives.base import Objective
from dlmkit.processes.base import ForwardProcess
from dlmkit.types import Noised, Prediction


@law(unless=no_integral)
def law_boundary_terms(
    objective: Objective[Any], process: ForwardProcess, source: Source | None = None
) -> Iterator[Finding]:
    """With its boundary terms the bound is the entropy plus the enumerated excess of independent tokens."""
    source = source or toy_source(process)
    total = integrals(objective, process, source, exact_predictor(objective, process, source))
    before, after = process.end_shares
    excess = 0.0
    if before > 0:
        total = total + mean_reconstruction(objective, process, source)
        excess += dependence_at_zero(process, source)
    if after > 0:
        total = total + prior_term(objective, process, source)
        excess += divergence_of_the_prior(process, source)
    got, want = float((source.probs * total).sum()), source.entropy + excess
    yield at_most(
        "bound with boundary terms = entropy + known excess",
        abs(got - want),
        1e-8,
        f"the bound is {got:.5g} nats on average, the entropy {source.entropy:.5g} and the excess of independent"
        f" tokens {excess:.5g}: the reconstruction (1 - alpha(0) = {before:.3g}) or the prior term (alpha(1) ="
        f" {after:.3g}) is wrong",
    )


def mean_reconstruction(objective: Objective[Any], process: ForwardProcess, source: Source) -> Tensor:
    """Return E[-log p(x_0 | x_t)] at t = 0 for each x of the source, [S]."""
    zero = Nodes(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    noised, share, sequence = noised_everywhere(source, process, zero)
    cost = reconstruction(objective, _prediction(objective, process, source, noised), noised, process).sum(-1)
    return sum_by(share * cost, sequence, len(source.probs))


def prior_term(objective: Objective[Any], process: ForwardProcess, source: Source) -> Tensor:
    """Return the prior term for each x of the source, [S]."""
    x_0 = source.sequences
    ones = torch.ones(len(x_0), dtype=torch.float64)
    x_1 = process.prior((len(x_0), source.length), torch.Generator().manual_seed(0))
    noised = Noised(x_0, x_1, ones, torch.ones_like(x_0, dtype=torch.bool), ones)
    return prior(objective, _prediction(objective, process, source, noised), noised, process).sum(-1)


def dependence_at_zero(process: ForwardProcess, source: Source) -> float:
    """Return the sum over i of H(x^i | x_t=0), less H(x | x_t=0)."""
    zero = torch.zeros(1, dtype=torch.float64)
    joint = source.joint.reshape(source.joint.shape + (1,) * source.length)  # of x and of x_t
    kernel = channel(process, zero)[0]
    for i in range(source.length):
        shape = [1] * (2 * source.length)
        shape[i] = shape[source.length + i] = source.vocab_size
        joint = joint * kernel.reshape(shape)
    noisy = joint.sum(list(range(source.length)))
    alone = [
        _entropy(joint.sum([j for j in range(source.length) if j != i])) - _entropy(noisy) for i in range(source.length)
    ]
    return sum(alone) - (_entropy(joint) - _entropy(noisy))


def divergence_of_the_prior(process: ForwardProcess, source: Source) -> float:
    """Return KL(p(x_1) || product of the tokens' distributions that generation starts from)."""
    one = torch.ones(1, dtype=torch.float64)
    marginal = source.marginal(process, one)[0]
    _, mass = process.coefficients(one)
    start = torch.ones_like(marginal)
    for i in range(source.length):
        others = [j for j in range(source.length) if j != i]
        token = marginal.sum(others) if process.mask_only else mass[0] / mass[0].sum()
        shape = [1] * source.length
        shape[i] = source.vocab_size
        start = start * token.reshape(shape)
    occurs = marginal > 0
    return float((marginal[occurs] * (marginal[occurs] / start[occurs]).log()).sum())


def _prediction(objective: Objective[Any], process: ForwardProcess, source: Source, noised: Noised) -> Prediction:
    return exact_predictor(objective, process, source)(noised.x_t, noised.t)


def _entropy(joint: Tensor) -> float:
    return float(-torch.special.xlogy(joint, joint).sum())


LAWS = [law_boundary_terms]
"""Of an objective that integrates over t and a process with noise."""
