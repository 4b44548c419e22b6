"""Bounds in discrete time: the term of a step is the divergence of two reverse steps, from the chain's matrices.

Shapes: L length, V vocabulary (small), S sequences of the source, Z = V^L noisy sequences. Losses are nats.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dlmkit.laws.findings import Finding, at_most, law, relative
from dlmkit.laws.objectives import exact_predictor, no_noise, toy_source
from dlmkit.laws.quadrature import Nodes
from dlmkit.laws.source import Source, all_sequences, channel, noised_everywhere, sum_by
from dlmkit.objectives.base import Objective
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.base import ForwardProcess


def _continuous(objective: Objective[Any], process: ForwardProcess) -> str | None:
    if objective.num_steps is None:
        return "its bound is an integral over t, without steps"
    return no_noise(objective, process)


@law(unless=_continuous)
def law_steps(objective: Objective[Any], process: ForwardProcess) -> Iterator[Finding]:
    """With the exact predictor the nll at t = i / T is T times the divergence of step i: the mean over i is the sum."""
    assert objective.num_steps is not None
    source, num_steps = toy_source(process), objective.num_steps
    predictor = exact_predictor(objective, process, source)
    for step in sorted({1, (num_steps + 1) // 2, num_steps}):
        s, t = torch.tensor([[step - 1], [step]], dtype=torch.float64) / num_steps
        noised, share, sequence = noised_everywhere(source, process, Nodes(t, torch.ones_like(t)))
        nll = objective(predictor(noised.x_t, noised.t), noised, process).nll.detach().double()
        got = sum_by(share * nll.sum(-1), sequence, len(source.probs))
        want = num_steps * step_divergence(source, process, s, t)
        error = relative(got, want, 1e-8, 1e-10).nan_to_num(nan=float("inf"))
        worst = int(error.argmax())
        yield at_most(
            "nll = T times the divergence of a step",
            error[worst],
            1e-8,
            f"step {step} of {num_steps} has nll {float(got[worst]):.5g} for {source.sequences[worst].tolist()}, but T"
            f" times its divergence is {float(want[worst]):.5g}",
        )


def step_divergence(source: Source, process: ForwardProcess, s: Tensor, t: Tensor) -> Tensor:
    """Return E KL(q(x_s | x_t, x_0) || p(x_s | x_t)) for each x_0 of the source, [S]; p plugs in the exact posterior.

    From matrices of the chain and Bayes' rule alone, in each position separately.

    Args:
        source: the data.
        process: the noise.
        s: float64 [1], below t.
        t: float64 [1].
    """
    (alpha_s, mass_s), (alpha_t, mass_t) = process.coefficients(s), process.coefficients(t)
    kept = alpha_t / alpha_s
    jump = kept * torch.eye(process.vocab_size, dtype=torch.float64) + mass_t - kept * mass_s  # q(x_t | x_s)
    at_s, at_t = channel(process, s)[0], channel(process, t)[0]
    states = all_sequences(source.length, process.vocab_size)
    times = t.expand(len(states))
    table = source.exact_predictor(process, states, times).table
    chance = torch.ones(len(source.probs), len(states), dtype=torch.float64)
    divergences = []
    for i, z in enumerate(states.unbind(1)):
        x_theta = X0LeaveOneOut().log_x0(table[:, i], z, times, process).exp()
        q = _normalised(at_s[:, None, :] * jump[:, z].T)  # [V, Z, V]: x_0, x_t, x_s
        p = _normalised((x_theta @ at_s) * jump[:, z].T)  # [Z, V]
        log_ratio = q.clamp_min(1e-300).log() - p.clamp_min(1e-300).log()
        x_0 = source.sequences[:, i]
        divergences.append((q * log_ratio).sum(-1)[x_0])
        chance = chance * at_t[x_0][:, z]
    return (chance * sum(divergences)).sum(-1)


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-300)


LAWS = [law_steps]
"""Of an objective in discrete time and a process with noise."""
