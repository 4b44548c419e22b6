"""Samplers: with the exact predictor the samples have the data's distribution, and what is given stays.

Shapes: B batch, L length, V vocabulary (small). Time: t = 0 is data, t = 1 is noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dlmkit.generation import Event, generate, prior_sample
from dlmkit.laws.denoisers import Exact, FixedLogits, exact_denoiser, is_causal
from dlmkit.laws.findings import FALSE_ALARM, Finding, at_most, holds, law
from dlmkit.laws.source import Source, all_sequences, index_of, random_source
from dlmkit.laws.toys import LENGTH, toy_source
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.base import ForwardProcess
from dlmkit.randomness import generator_for, row_noise
from dlmkit.samplers.base import Sampler, Step
from dlmkit.types import Canvas, Denoiser, NetworkInput

NUM_STEPS = 128
NUM_SAMPLES = 10_000
STEP_BIAS = 0.02
"""Total variation that NUM_STEPS steps may leave: two positions drawn in one step are drawn independently."""


def empty(process: ForwardProcess, num: int, length: int = LENGTH) -> Canvas:
    """Return a canvas with nothing given."""
    filler = 0 if process.mask_id is None else process.mask_id
    return Canvas(torch.full((num, length), filler), torch.zeros(num, length, dtype=torch.bool))


def counts_of(tokens: Tensor, vocab_size: int) -> Tensor:
    """Count each of the V^L sequences in tokens [B, L]."""
    return torch.bincount(index_of(tokens, vocab_size), minlength=vocab_size ** tokens.shape[1])


def total_variation(p: Tensor, q: Tensor) -> float:
    """Return half the sum of |p - q|."""
    return float((p - q).abs().sum() / 2)


def allowed_distance(num_sequences: int, num_samples: int) -> float:
    """Return the total variation that `num_samples` right draws stay below, but for one time in a million.

    By Cauchy-Schwarz the mean of the empirical distance is at most sqrt(S / N) / 2 for S sequences and N draws, and by
    McDiarmid it exceeds its mean by e with probability at most exp(-2 N e^2).
    """
    spread = (num_sequences / num_samples) ** 0.5 / 2
    surprise = float((torch.tensor(1 / FALSE_ALARM).log() / (2 * num_samples)) ** 0.5)
    return spread + surprise


# The chain, exactly


def step_rows(denoiser: Denoiser, process: ForwardProcess, states: Tensor, s: float, t: float) -> Tensor:
    """Return P(x_s | x_t) of an ancestral step for each x_t in `states` [n, L], as [n, V^L]."""
    n, length = states.shape
    where = torch.ones_like(states, dtype=torch.bool)
    at = torch.full((n,), t, dtype=torch.float64)
    table = denoiser(NetworkInput(states, at)).logits(where).reshape(n, length, -1)
    out = torch.ones(n, 1, dtype=torch.float64)
    for i in range(length):
        x0_probs = X0LeaveOneOut().log_x0(table[:, i], states[:, i], at, process).exp()
        times = (torch.full((n,), time, dtype=torch.float64) for time in (s, t))
        out = (out[:, :, None] * process.posterior(states[:, i], x0_probs, *times)[:, None, :]).flatten(1)
    return out


def distribution_after(
    num_steps: int,
    denoiser: Denoiser,
    process: ForwardProcess,
    sampler: Sampler[Any] | None = None,
    length: int = LENGTH,
) -> Tensor:
    """Return the distribution of `generate` with ancestral steps and nothing given, [V^L]."""
    states = all_sequences(length, process.vocab_size)
    _, mass = process.coefficients(torch.ones(1, dtype=torch.float64))
    now = (mass[0] / mass[0].sum())[states].prod(-1)
    even = torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)
    for t, s in pairwise((even if sampler is None else sampler.times(num_steps)).tolist()):
        reached = now > 0
        now = now[reached] @ step_rows(denoiser, process, states[reached], s, t)
    return now


@law(unless=lambda process: None if process.has_noise else "it has no noise")
def law_reverse_chain(process: ForwardProcess) -> Iterator[Finding]:
    """Of a process: with the exact predictor its reverse chain tends to the data as the steps get finer."""
    source = toy_source(process)
    denoiser, data = Exact(source, process, X0LeaveOneOut()), source.joint.flatten()
    after = {num: total_variation(distribution_after(num, denoiser, process), data) for num in (16, 64)}
    # The chain starts from pure noise, the data's noisy marginal at t = 1 has alpha(1) of each token left.
    left = LENGTH * float(process.alpha(torch.ones(1, dtype=torch.float64)))
    yield at_most(
        "reverse chain tends to the data",
        after[64],
        0.35 * after[16] + left,
        f"64 exact reverse steps end {after[64]:.3g} (total variation) from the data, 16 steps {after[16]:.3g}: finer"
        " steps do not help",
    )


# Laws of a sampler


@law()
def law_times(sampler: Sampler[Any]) -> Iterator[Finding]:
    """The times run from noise (1) to data (0), and stay there if steps remain."""
    canvas = Canvas(torch.zeros(1, LENGTH, dtype=torch.int64), torch.zeros(1, LENGTH, dtype=torch.bool))
    for requested in (1, 2, 50):
        num_steps = sampler.num_steps(canvas, requested)
        times = sampler.times(num_steps)
        falls = len(times) == num_steps + 1 and times.dtype == torch.float64
        falls = falls and float(times[0]) == 1.0 and float(times[-1]) == 0.0
        falls = falls and bool(((times.diff() < 0) | (times[1:] == 0)).all())
        shown = f"{float(times[0]):.3g} to {float(times[-1]):.3g} in {len(times) - 1} steps"
        yield holds(
            "times fall from 1 to 0", falls, f"times({num_steps}) run from {shown}, {times.dtype}: not from 1 down to 0"
        )


def _not_faithful(sampler: Sampler[Any], process: ForwardProcess) -> str | None:
    return None if sampler.faithful else "it seeks likely text (faithful is False)"


def _no_infilling(sampler: Sampler[Any], process: ForwardProcess) -> str | None:
    if not process.mask_only:
        return "a given token does not differ from a noisy one under this noise"
    if sampler.block_size == 1:
        return "the first token is drawn before the block that is given"
    return _not_faithful(sampler, process)


@law(unless=_not_faithful)
def law_distribution(sampler: Sampler[Any], process: ForwardProcess) -> Iterator[Finding]:
    """With the exact predictor the samples have the data's distribution."""
    source = toy_source(process, LENGTH)
    denoiser, canvas = exact_denoiser(sampler, process, source), empty(process, NUM_SAMPLES)
    done = generate(denoiser, process, sampler, canvas, NUM_STEPS, 0)
    drawn = counts_of(done.tokens, process.vocab_size) / NUM_SAMPLES
    distance = total_variation(drawn, source.joint.flatten())
    off = int((drawn - source.joint.flatten()).abs().argmax())
    sequence = all_sequences(LENGTH, process.vocab_size)[off].tolist()
    yield at_most(
        "samples have the data's distribution",
        distance,
        STEP_BIAS + allowed_distance(len(source.probs), NUM_SAMPLES),
        f"total variation to the data: {sequence} is drawn with frequency {float(drawn[off]):.3g}, p ="
        f" {float(source.joint.flatten()[off]):.3g}, though the predictor is exact",
    )


@law(unless=_no_infilling)
def law_infilling(sampler: Sampler[Any], process: ForwardProcess) -> Iterator[Finding]:
    """Around a given token the samples follow the conditional distribution."""
    assert process.mask_id is not None
    source = toy_source(process, LENGTH)
    given = int(source.sequences[0, 1])
    fixed = torch.tensor([False, True, False]).expand(NUM_SAMPLES, -1)
    tokens = torch.tensor([process.mask_id, given, process.mask_id]).repeat(NUM_SAMPLES, 1)
    canvas = Canvas(tokens, fixed)
    denoiser = exact_denoiser(sampler, process, source)
    done = generate(denoiser, process, sampler, canvas, NUM_STEPS, 1)
    conditional = torch.zeros_like(source.joint)
    conditional[:, given] = source.joint[:, given] / source.joint[:, given].sum()
    distance = total_variation(counts_of(done.tokens, process.vocab_size) / NUM_SAMPLES, conditional.flatten())
    yield at_most(
        "infilling follows p(rest | given)",
        distance,
        STEP_BIAS + allowed_distance(int((conditional > 0).sum()), NUM_SAMPLES),
        f"with token {given} given in the middle the rest is {distance:.3g} (total variation) from p(rest | given)",
    )


@law()
def law_given_tokens_stay(sampler: Sampler[Any], process: ForwardProcess) -> Iterator[Finding]:
    """Given tokens never change, no mask is left, the canvas is not written to."""
    source = random_source(4, process.vocab_size, process.mask_id)
    canvas = _partly_given(sampler, process, source)
    given, before, changed, steps = canvas.tokens[canvas.fixed], canvas.tokens.clone(), 0, []

    def on_step(event: Event) -> None:
        nonlocal changed
        fixed = canvas.fixed[event.rows]
        changed += int((event.after[fixed] != canvas.tokens[event.rows][fixed]).sum())
        steps.append(event.index)

    denoiser = exact_denoiser(sampler, process, source)
    done = generate(denoiser, process, sampler, canvas, 5, 2, on_step)
    changed += int((done.tokens[canvas.fixed] != given).sum())
    yield at_most("given tokens never change", changed, 0.0, f"{changed} given tokens were changed on the way")
    yield holds("fixed is kept", torch.equal(done.fixed, canvas.fixed), "the canvas came back with another `fixed`")
    yield holds("the canvas is not written to", torch.equal(canvas.tokens, before), "canvas.tokens was overwritten")
    yield holds("steps are counted from 0", steps == list(range(len(steps))) and bool(steps), f"steps were {steps}")
    outside = int(((done.tokens < 0) | (done.tokens >= process.vocab_size)).sum())
    yield at_most("tokens are in the vocabulary", outside, 0.0, f"{outside} ids are outside [0, V)")
    left = 0 if process.mask_id is None else int((done.tokens == process.mask_id).sum())
    yield at_most("no mask is left", left, 0.0, f"{left} of {done.tokens.numel()} tokens are still masks after 5 steps")


def _partly_given(sampler: Sampler[Any], process: ForwardProcess, source: Source) -> Canvas:
    """Return 200 texts of the source with a random half given; for a left-to-right sampler their beginnings."""
    generator = generator_for("cpu", "canvas")
    # Contexts that can occur, so that every conditional exists.
    rows = torch.multinomial(source.probs, 200, replacement=True, generator=generator)
    tokens = source.sequences[rows]
    fixed = torch.rand(200, source.length, generator=generator) < 0.5
    fixed[:2] = torch.tensor([[True], [False]])  # everything given; nothing given
    ends = torch.tensor([[True, False], [False, True], [True, True]])
    fixed[13:16], fixed[13:16, 0], fixed[13:16, -1] = False, ends[:, 0], ends[:, 1]
    if is_causal(sampler):
        fixed = torch.arange(source.length) < torch.arange(200)[:, None] % source.length
    filler = 0 if process.mask_id is None else process.mask_id
    return Canvas(tokens.masked_fill(~fixed, filler), fixed)


@law()
def law_draws_repeat(sampler: Sampler[Any], process: ForwardProcess) -> Iterator[Finding]:
    """Samples are a function of the seed alone."""
    source = toy_source(process, LENGTH)
    denoiser = exact_denoiser(sampler, process, source)
    first, again, other = (
        generate(denoiser, process, sampler, empty(process, 50), 8, seed).tokens for seed in (1, 1, 2)
    )
    repeats = torch.equal(first, again) and not torch.equal(first, other)
    yield holds("drawn from the seed alone", repeats, "equal seeds give other texts, or other ones the same")


@law()
def law_rows_apart(sampler: Sampler[Any], process: ForwardProcess) -> Iterator[Finding]:
    """A row's tokens and passes are those that it has alone, or beside other rows in another order."""
    source = random_source(4, process.vocab_size, process.mask_id)
    canvas, rows = _partly_given(sampler, process, source), torch.tensor([41, 3, 0, 12, 7])
    denoiser = exact_denoiser(sampler, process, source)

    def completed(rows: Tensor) -> Tensor:
        some = Canvas(canvas.tokens[rows], canvas.fixed[rows])
        done = generate(denoiser, process, sampler, some, 6, row_noise(rows, "rows"))
        return torch.cat([done.tokens, done.passes[:, None]], dim=1)

    together, alone = completed(rows), torch.cat([completed(row) for row in rows.split(1)])
    differ = int((together != alone).any(-1).sum())
    yield at_most(
        "rows do not depend on each other",
        differ,
        0.0,
        f"{differ} of {len(rows)} rows have other tokens or passes in a batch than alone: draw from `step.noise`, whose"
        " numbers belong to rows, and keep no state for the batch as a whole",
    )


WIDE = 61
"""A vocabulary size unlike any other dimension, so that noise over the vocabulary is recognised."""


@law()
def law_tail(sampler: Sampler[Any], process: ForwardProcess) -> Iterator[Finding]:
    """Tokens are drawn with float64 noise: in float32 a token less likely than 6e-8 is never drawn (arXiv 2409.02908).

    That is too rare to count, so the draws themselves are recorded: every random number over the vocabulary.

    Args:
        sampler: the sampler.
        process: of a vocabulary of WIDE tokens.
    """
    logits = torch.randn(7, 5, process.vocab_size, generator=torch.Generator().manual_seed(0))
    if process.mask_id is not None:
        logits[..., process.mask_id] = float("-inf")
    canvas = empty(process, 7, 5)
    state = sampler.init(canvas)
    noise = row_noise(torch.arange(7), "tail")
    x_1 = prior_sample(process, 5, noise)
    t = torch.full((7,), 0.9, dtype=torch.float64)

    with RandomNumbers(process.vocab_size) as recorded:
        step = Step(0, sampler.num_steps(canvas, 2), t, t / 2, canvas.fixed, canvas.fixed, noise)
        sampler.step(FixedLogits(logits), process, x_1, step, state)
    coarse = [name for name, dtype in recorded.draws if dtype != torch.float64]
    yield at_most(
        "tokens are drawn in float64",
        len(coarse),
        0.0,
        f"{', '.join(sorted(set(coarse)))} draws over the vocabulary in float32, whose smallest step is 6e-8: rarer"
        " tokens are never drawn; use dlmkit.tensors.categorical",
    )


class RandomNumbers(TorchDispatchMode):
    """Records torch's random numbers whose last dimension is the vocabulary.

    Attributes:
        draws: (operation, dtype) of each, in order.
    """

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.draws: list[tuple[str, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and record it."""
        out = func(*args, **(kwargs or {}))
        name = str(func).split(".")[1]
        if torch.Tag.nondeterministic_seeded in func.tags and isinstance(out, Tensor):
            noise = args[0] if name == "multinomial" else out  # multinomial races in its input's dtype
            if noise.ndim and noise.shape[-1] == self.vocab_size and noise.is_floating_point():
                self.draws.append((name, noise.dtype))
        return out


LAWS = [law_distribution, law_infilling, law_given_tokens_stay, law_draws_repeat, law_rows_apart]
"""Of a sampler and a process; law_times takes the sampler alone, law_tail a process of WIDE tokens."""
