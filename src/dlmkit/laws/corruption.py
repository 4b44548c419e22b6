"""Corruptions: each copy alone has the mean of independent noise over t. t = 0 is data, t = 1 is noise.

Shapes: C copies, B sequences, L positions.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dlmkit.corruption.base import Corruption
from dlmkit.laws.findings import FALSE_ALARM, Finding, at_least, at_most, holds, law, worst_at
from dlmkit.laws.processes import TIMES, data_tokens, format_probs
from dlmkit.laws.source import channel
from dlmkit.laws.statistics import chi_square_p
from dlmkit.processes.base import ForwardProcess
from dlmkit.randomness import generator_for
from dlmkit.types import Batch, TimeDraw

NUM_TIMES = 100_000


@law()
def law_copies_integrate(corruption: Corruption, process: ForwardProcess) -> Iterator[Finding]:
    """For each copy alone the mean of weight * f(t) is the integral of f over [0, 1]."""
    t = (torch.arange(NUM_TIMES, dtype=torch.float64) + 0.5) / NUM_TIMES
    times, weight = corruption.times(process, TimeDraw(t, torch.ones_like(t)))
    well_made = times.shape == weight.shape == (corruption.num_copies, NUM_TIMES)
    shapes = f"times() of {NUM_TIMES} times are {tuple(times.shape)}, {tuple(weight.shape)}"
    yield holds("times and weights [C, B]", well_made, shapes)
    if not well_made:
        return
    powers = torch.arange(3)
    means = (weight * times ** powers[:, None, None]).mean(-1)  # [3, C]
    error, power = worst_at((means - 1 / (powers[:, None] + 1)).abs(), powers.double())
    yield at_most(
        "each copy integrates over t",
        error,
        1e-3,
        f"the mean of weight * t^{power:.0f} is {format_probs(means[int(power)])} over the copies, not"
        f" {1 / (power + 1):.4g}",
    )


@law()
def law_draws_are_keyed(corruption: Corruption, process: ForwardProcess) -> Iterator[Finding]:
    """Unscored tokens stay, and the noise of a sequence depends on its index and the key alone."""
    tokens = torch.tensor(data_tokens(process))
    x_0 = tokens[torch.arange(20 * 12).reshape(20, 12) % len(tokens)]
    scored = torch.rand(x_0.shape, generator=generator_for("cpu", "scored")) < 0.7
    draw = TimeDraw(torch.linspace(0.1, 0.9, 20, dtype=torch.float64), torch.ones(20, dtype=torch.float64))
    noised = corruption.draw(process, Batch(x_0, scored), draw, range(20), "law")
    num = corruption.num_copies
    yield holds(
        "C * B rows", noised.x_t.shape == (num * 20, 12), f"{num} copies of 20 sequences are {tuple(noised.x_t.shape)}"
    )
    touched = float((noised.x_t != noised.x_0)[~noised.scored].double().mean())
    yield at_most("unscored tokens stay", touched, 0.0, f"{touched:.1%} of the tokens not scored were changed")
    rows = [3, 11]
    alone = corruption.draw(
        process, Batch(x_0[rows], scored[rows]), TimeDraw(draw.t[rows], draw.weight[rows]), rows, "law"
    )
    same = torch.equal(alone.x_t.view(num, 2, 12), noised.x_t.view(num, 20, 12)[:, rows])
    yield holds("noise belongs to the sequence", same, "the noise of a sequence changes with the rest of its batch")
    other = corruption.draw(process, Batch(x_0, scored), draw, range(20), "another key")
    moved = not process.has_noise or not torch.equal(other.x_t, noised.x_t)
    yield holds("another key, other noise", moved, "two keys give the same noise")


def _dependent(corruption: Corruption, process: ForwardProcess) -> str | None:
    return None if corruption.independent else "at one t its tokens are not independent"


@law(unless=_dependent)
def law_copies_follow_the_marginal(corruption: Corruption, process: ForwardProcess) -> Iterator[Finding]:
    """Each copy is the noise of its own time, in every position independently."""
    num, length, token = 2_000, 7, data_tokens(process)[-1]
    t = TIMES.repeat_interleave(num)
    times = corruption.times(process, TimeDraw(t, torch.ones_like(t))).t
    x_0 = torch.full((len(t), length), token)
    scored = torch.ones_like(x_0, dtype=torch.bool)
    x_t = corruption.corrupt(process, x_0, times, scored, generator_for("cpu", "copies"))
    for copy, (drawn, at) in enumerate(zip(x_t, times, strict=True)):
        for k in range(len(TIMES)):
            rows = slice(k * num, (k + 1) * num)
            yield _follows(process, drawn[rows], at[rows][:1], token, copy)


def _follows(process: ForwardProcess, drawn: Tensor, t: Tensor, token: int, copy: int) -> Finding:
    expected = channel(process, t)[0, token]
    p_value = chi_square_p(torch.bincount(drawn.flatten(), minlength=process.vocab_size), expected * drawn.numel())
    meaning = f"copy {copy} of token {token} is not the noise of its time, t = {float(t):.4g}"
    return at_least("each copy follows the marginal", p_value, FALSE_ALARM, meaning)


def _fixed_rate(corruption: Corruption, process: ForwardProcess) -> str | None:
    t = torch.full((1,), 0.5, dtype=torch.float64)
    rate = corruption.noise_rate(process, t, torch.ones(1, 4, dtype=torch.bool))
    return "it has the process's own noise rate" if rate is None else None


@law(unless=_fixed_rate)
def law_noise_rate(corruption: Corruption, process: ForwardProcess) -> Iterator[Finding]:
    """The stated noise rate is the share of scored tokens that are noisy, up to the share that is noisy at t = 1."""
    num, length = 400, 9
    t = torch.linspace(1e-3, 1.0, num, dtype=torch.float64)
    x_0 = torch.full((num, length), data_tokens(process)[-1])
    scored = torch.rand(x_0.shape, generator=generator_for("cpu", "rate")) < 0.7
    draw = TimeDraw(t, torch.ones_like(t))
    noised = corruption.draw(process, Batch(x_0, scored), draw, range(num), "rate")
    assert noised.noise_rate is not None
    share = (noised.x_t != noised.x_0).double().sum(-1) / scored.sum(-1).clamp_min(1)
    last = 1.0 - process.alpha(torch.ones((), dtype=torch.float64))
    error, where = worst_at((share * last - noised.noise_rate)[scored.any(-1)].abs(), t[scored.any(-1)])
    yield at_most(
        "noise_rate = share of noisy tokens", error, 1e-12, f"noise_rate is off by {error:.3g} at t = {where}"
    )


LAWS = [law_copies_integrate, law_draws_are_keyed, law_copies_follow_the_marginal, law_noise_rate]
"""Of a corruption and a process that it can draw."""
