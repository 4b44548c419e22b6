"""Processes: every method agrees with alpha_t 1[z = x] + mass_t(z), by brute force on a small vocabulary.

Shapes: K times, V vocabulary (the process's own, small). Time: t = 0 is data, t = 1 is noise.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dlmkit.laws.findings import FALSE_ALARM, Finding, at_least, at_most, holds, law, relative, worst_at
from dlmkit.laws.source import channel
from dlmkit.laws.statistics import chi_square_p
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.base import ForwardProcess, InterpolatingProcess
from dlmkit.randomness import generator_for

TIMES = torch.tensor([1e-4, 0.01, 0.2, 0.5, 0.77, 0.99, 1.0], dtype=torch.float64)
SHOWN = 4
"""How many numbers of a distribution a message contains."""


def between() -> tuple[Tensor, Tensor]:
    """Return pairs s < t, s from 0 on."""
    s = torch.tensor([0.0, 0.0, 0.1, 0.3, 0.49, 0.9, 0.5], dtype=torch.float64)
    t = torch.tensor([0.2, 1.0, 0.6, 0.31, 0.5, 0.95, 1.0], dtype=torch.float64)
    return s, t


def data_tokens(process: ForwardProcess) -> list[int]:
    """Return the ids that data may hold: all but the mask."""
    return [token for token in range(process.vocab_size) if token != process.mask_id]


def one_hot(process: ForwardProcess, tokens: list[int] | Tensor) -> Tensor:
    """Return rows of the identity, float64 [N, V]."""
    return torch.eye(process.vocab_size, dtype=torch.float64)[torch.as_tensor(tokens)]


def step_matrix(process: ForwardProcess, s: Tensor, t: Tensor) -> Tensor:
    """Return q_{t|s}(z | y) [K, V (y), V (z)] from `transition`."""
    kept, mass = process.transition(s, t)
    return kept[:, None, None] * torch.eye(process.vocab_size, dtype=torch.float64) + mass[:, None, :]


@law()
def law_mass(process: ForwardProcess) -> Iterator[Finding]:
    """mass >= 0 and sums to 1 - alpha."""
    t = torch.cat([torch.zeros(1, dtype=torch.float64), TIMES])
    alpha, mass = process.coefficients(t)
    shapes = (alpha.shape, mass.shape, mass.dtype)
    yield holds(
        "coefficients [B] and [B, V]",
        shapes == (t.shape, (len(t), process.vocab_size), torch.float64),
        f"for {len(t)} float64 times alpha is {tuple(alpha.shape)}, mass {mass.dtype} {tuple(mass.shape)}",
    )
    below, where = worst_at((-mass).clamp_min(0), t)
    yield at_most("mass >= 0", below, 0.0, f"mass is {-below:.3g} at t = {where:.4g}: no probability")
    error, where = worst_at((mass.sum(-1) - (1 - alpha)).abs(), t)
    at = int((t - where).abs().argmin())
    yield at_most(
        "mass sums to 1 - alpha",
        error,
        1e-15,
        f"mass sums to {float(mass[at].sum()):.6g} at t = {where:.4g}, 1 - alpha is {float(1 - alpha[at]):.6g}",
    )
    error, where = worst_at((process.alpha(t) - alpha).abs(), t)
    yield at_most("alpha() = coefficients()", error, 0.0, f"alpha(t) and coefficients(t) differ at t = {where:.4g}")
    if process.mask_only:
        reached = torch.arange(process.vocab_size) != process.mask_id
        elsewhere = float(mass[:, reached].max())
        yield at_most("mask_only: noise only masks", elsewhere, 0.0, f"another token has mass {elsewhere:.3g}")
    if isinstance(process, InterpolatingProcess):
        declared, found = process.num_noise_tokens, int((mass > 0).any(0).sum())
        meaning = f"noise reaches {found} tokens, num_noise_tokens is {declared}: noise over V includes the mask"
        yield holds("noise reaches num_noise_tokens", found == declared, meaning)


@law()
def law_marginal(process: ForwardProcess) -> Iterator[Finding]:
    """`marginal` is the channel's matrix product."""
    generator = generator_for("cpu", "marginal")
    x0_probs = torch.rand(len(TIMES), process.vocab_size, dtype=torch.float64, generator=generator)
    x0_probs /= x0_probs.sum(-1, keepdim=True)
    by_matrix = torch.einsum("kx,kxz->kz", x0_probs, channel(process, TIMES))
    got = process.marginal(x0_probs, TIMES)
    error, where = worst_at(relative(got, by_matrix, 1e-12, 1e-15), TIMES)
    at = int((TIMES - where).abs().argmin())
    yield at_most(
        "marginal = alpha x_0 + mass",
        error,
        1e-12,
        f"marginal at t = {where:.4g} is {format_probs(got[at])}, coefficients() give {format_probs(by_matrix[at])}",
    )


@law()
def law_chapman_kolmogorov(process: ForwardProcess) -> Iterator[Finding]:
    """Steps of the chain compose: 0 to s to t is 0 to t."""
    s, t = between()
    step = step_matrix(process, s, t)
    error, where = worst_at((step.sum(-1) - 1).abs() + (-step).clamp_min(0).amax(-1), t)
    yield at_most("transition is a distribution", error, 1e-12, f"transition to t = {where:.4g} does not sum to 1")
    error, where = worst_at((channel(process, s) @ step - channel(process, t)).abs(), t)
    yield at_most(
        "transition leads from s to t", error, 1e-12, f"noise at s, then transition, is not noise at t = {where:.4g}"
    )
    middle = (s + t) / 2
    two_steps = step_matrix(process, s, middle) @ step_matrix(process, middle, t)
    error, where = worst_at((two_steps - step).abs(), t)
    yield at_most("two transitions make one", error, 1e-12, f"two half steps are not one step to t = {where:.4g}")


@law()
def law_posterior(process: ForwardProcess) -> Iterator[Finding]:
    """Bayes by hand: p(x_0) q_s(y | x_0) q_{t|s}(z | y), normalised over y, for every z that can occur."""
    tokens = data_tokens(process)
    priors = torch.rand(5, process.vocab_size, dtype=torch.float64, generator=generator_for("cpu", "posterior"))
    if process.mask_id is not None:
        priors[:, process.mask_id] = 0.0  # data has no mask
    priors = torch.cat([priors / priors.sum(-1, keepdim=True), one_hot(process, tokens)])
    worst, meaning = 0.0, ""
    for s, t in zip(*between(), strict=True):
        at_s, step = channel(process, s[None])[0], step_matrix(process, s[None], t[None])[0]
        for x0_probs in priors:
            joint = (x0_probs @ at_s)[:, None] * step  # [y, z]
            z = (joint.sum(0) > 0).nonzero()[:, 0]
            got = process.posterior(z, x0_probs.expand(len(z), -1), s.expand(len(z)), t.expand(len(z)))
            bayes = (joint / joint.sum(0))[:, z].T
            error, row = worst_at(relative(got, bayes, 1e-9, 1e-12), torch.arange(len(z)))
            if error > worst:
                seen = int(z[int(row)])
                worst = error
                meaning = (
                    f"q(x_s | x_t = {seen}) with s = {s:.3g}, t = {t:.3g} is {format_probs(got[int(row)])}, Bayes gives"
                    f" {format_probs(bayes[int(row)])}"
                )
    yield at_most("posterior = Bayes", worst, 1e-9, meaning)


@law()
def law_rate(process: ForwardProcess) -> Iterator[Finding]:
    """`rate` is the chance of a jump per time."""
    t = TIMES[(TIMES > 1e-3) & (TIMES < 1)]
    step = 1e-7
    quotient = process.transition(t, t + step)[1] / step
    rate = process.rate(t)
    error, where = worst_at(relative(rate, quotient, 1e-4, 1e-7), t)
    at = int((t - where).abs().argmin())
    yield at_most(
        "rate = transition per time",
        error,
        1e-4,
        f"rate at t = {where:.4g} is {format_probs(rate[at])}, transition() over 1e-7 gives"
        f" {format_probs(quotient[at])}",
    )


@law()
def law_corrupt(process: ForwardProcess) -> Iterator[Finding]:
    """`corrupt` draws from the channel, and touches scored tokens only."""
    # A subclass may draw faster than the base class; the base class stays true all the same.
    for corrupt in (type(process).corrupt, ForwardProcess.corrupt):
        yield from _corrupt(process, corrupt)


def _corrupt(process: ForwardProcess, corrupt: object) -> Iterator[Finding]:
    batch, length, tokens = 6_000, 7, data_tokens(process)
    generator = generator_for("cpu", "corrupt")
    x_0 = torch.tensor(tokens)[torch.arange(batch * length).reshape(batch, length) % len(tokens)]
    t = TIMES.repeat(-(-batch // len(TIMES)))[:batch]
    scored = torch.rand(batch, length, generator=generator) < 0.7
    given, kept = x_0.clone(), scored.clone()
    x_t: Tensor = corrupt(process, x_0, t, scored, generator)  # type: ignore[operator]
    touched = float((x_t != given)[~kept].double().mean())
    yield at_most("unscored tokens stay", touched, 0.0, f"corrupt() changes {touched:.1%} of the tokens not scored")
    well_made = (x_t.shape, x_t.dtype) == (given.shape, torch.int64)
    yield holds("x_t is int64 [B, L]", well_made, f"corrupt() returns {x_t.dtype} {tuple(x_t.shape)}")
    clean = torch.equal(x_0, given) and torch.equal(scored, kept)
    yield holds("corrupt() writes to no argument", clean, "corrupt() wrote into x_0 or scored: return a new tensor")
    for k, time in enumerate(TIMES):
        rows = torch.arange(batch) % len(TIMES) == k
        expected = channel(process, time[None])[0]
        for x in tokens:
            here = kept[rows] & (given[rows] == x)
            observed = torch.bincount(x_t[rows][here], minlength=process.vocab_size)
            p_value = chi_square_p(observed, expected[x] * here.sum())
            yield at_least(
                "corrupt() follows the marginal",
                p_value,
                FALSE_ALARM,
                f"at t = {time:.4g} token {x} becomes 0, 1, ... with frequency"
                f" {format_probs(observed / here.sum())}, not"
                f" {format_probs(expected[x])}",
            )


@law()
def law_corrupt_is_independent(process: ForwardProcess) -> Iterator[Finding]:
    """Two positions of a row are noised independently, and so are two rows: pair counts factorise."""
    num, size, token = 20_000, process.vocab_size, data_tokens(process)[-1]
    t = torch.full((num,), 0.5, dtype=torch.float64)
    x_0 = torch.full((num, 2), token)
    x_t = process.corrupt(x_0, t, torch.ones_like(x_0, dtype=torch.bool), generator_for("cpu", "pairs"))
    single = channel(process, t[:1])[0, token]
    pairs = (single[:, None] * single[None, :]).flatten()
    for what, left, right in (("of a row", x_t[:, 0], x_t[:, 1]), ("of two rows", x_t[::2, 0], x_t[1::2, 0])):
        p_value = chi_square_p(torch.bincount(left * size + right, minlength=size**2), pairs * len(left))
        yield at_least(
            "positions are noised independently", p_value, FALSE_ALARM, f"two positions {what} change together"
        )


@law()
def law_noise_repeats(process: ForwardProcess) -> Iterator[Finding]:
    """Noise is a function of the generator alone."""
    tokens = data_tokens(process)
    x_0 = torch.tensor(tokens)[torch.arange(400).reshape(20, 20) % len(tokens)]
    t = torch.linspace(0, 1, 20, dtype=torch.float64)
    scored = torch.ones_like(x_0, dtype=torch.bool)
    first, again, other = (process.corrupt(x_0, t, scored, generator_for("cpu", seed)) for seed in (5, 5, 6))
    repeats = torch.equal(first, again) and not (process.has_noise and torch.equal(first, other))
    yield holds("drawn from the generator alone", repeats, "equal generators give other noise, or other ones the same")


def _without_noise(process: ForwardProcess) -> str | None:
    return None if process.has_noise else "it has no noise"


@law(unless=_without_noise)
def law_prior(process: ForwardProcess) -> Iterator[Finding]:
    """`prior` is the noise at t = 1."""
    shape = (4_000, 5)
    _, mass = process.coefficients(torch.ones(1, dtype=torch.float64))
    expected = mass[0] / mass[0].sum()
    for prior in (type(process).prior, ForwardProcess.prior):
        x_1 = prior(process, shape, generator_for("cpu", "prior"))
        well_made = (x_1.shape, x_1.dtype) == (shape, torch.int64)
        yield holds("prior is int64 [B, L]", well_made, f"prior() returns {x_1.dtype} {tuple(x_1.shape)}")
        counts = torch.bincount(x_1.flatten(), minlength=process.vocab_size)
        yield at_least(
            "prior = noise at t = 1",
            chi_square_p(counts, expected * x_1.numel()),
            FALSE_ALARM,
            f"prior() draws 0, 1, ... with frequency {format_probs(counts / x_1.numel())}, the noise at t = 1 is"
            f" {format_probs(expected)}: samples start where training never was",
        )


@law()
def law_x0_prediction(process: ForwardProcess, parameterization: X0LeaveOneOut | None = None) -> Iterator[Finding]:
    """A prediction of x_0 is the softmax where a token may change, and carries the others over."""
    parameterization = parameterization or X0LeaveOneOut()
    size = process.vocab_size
    logits = torch.randn(size, size, dtype=torch.float64, generator=generator_for("cpu", "log_x0"))
    if process.mask_id is not None:
        logits[:, process.mask_id] = float("-inf")  # as every prediction has it
    given, x_t = logits.clone(), torch.arange(size)
    probs = parameterization.log_x0(logits, x_t, torch.full((size,), 0.5, dtype=torch.float64), process).exp()
    noisy = process.may_change(x_t)
    error = float((probs - given.softmax(-1))[noisy].abs().max()) if noisy.any() else 0.0
    yield at_most("x_theta = softmax at noisy tokens", error, 1e-7, "x_theta is not the softmax of the logits")
    carried = float((probs - one_hot(process, x_t))[~noisy].abs().max()) if (~noisy).any() else 0.0
    yield at_most(
        "clean tokens are carried over", carried, 0.0, "where may_change is False x_theta is not certain of the token"
    )
    yield holds("logits are not written to", torch.equal(logits, given), "log_x0 wrote into the logits")


@law()
def law_may_change(process: ForwardProcess) -> Iterator[Finding]:
    """Where it is False the posterior keeps the token, whatever the prediction."""
    tokens = torch.arange(process.vocab_size)
    s, t = between()
    s, t = s[t < 1], t[t < 1]  # at t = 1 there may be no such token left
    for token in tokens[~process.may_change(tokens)]:
        z = token.expand(len(s))
        flat = torch.zeros(len(s), process.vocab_size, dtype=torch.float64)
        posterior = process.posterior(z, X0LeaveOneOut().log_x0(flat, z, t, process).exp(), s, t)
        leaves, where = worst_at((posterior - one_hot(process, z)).abs(), t)
        yield at_most(
            "may_change = False keeps the token",
            leaves,
            0.0,
            f"may_change is False at token {int(token)}, the posterior at t = {where:.3g} moves {leaves:.3g}",
        )


def format_probs(probs: Tensor) -> str:
    """Return a distribution as short text."""
    shown = ", ".join(f"{float(value):.4g}" for value in probs[:SHOWN])
    return f"({shown}{', ...' if len(probs) > SHOWN else ''})"


LAWS = [
    law_mass,
    law_marginal,
    law_chapman_kolmogorov,
    law_posterior,
    law_rate,
    law_noise_repeats,
    law_prior,
    law_x0_prediction,
    law_may_change,
    law_corrupt,
    law_corrupt_is_independent,
]
"""Of any process."""
