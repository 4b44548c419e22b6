"""Samplers that mask decided tokens again: q(z_s | x) is kept, and the chain tends to the data.

Shapes: B batch, L length, V vocabulary (small). Time: t = 0 is data, t = 1 is noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dlmkit.generation import generate
from dlmkit.laws.denoisers import exact_denoiser
from dlmkit.laws.findings import FALSE_ALARM, Finding, at_least, at_most, holds, law
from dlmkit.laws.samplers import counts_of, empty, total_variation
from dlmkit.laws.source import Source, all_sequences, index_of
from dlmkit.laws.statistics import chi_square_p
from dlmkit.laws.toys import LENGTH, seeded, toy_source
from dlmkit.processes.base import ForwardProcess
from dlmkit.randomness import row_noise
from dlmkit.samplers.base import Sampler, Step
from dlmkit.samplers.remasking import Confidences, Remasking
from dlmkit.types import NetworkInput

ROUNDING = 1e-12
NUM_SAMPLES = 5_000


def steps_of(sampler: Remasking, fixed: Tensor, num_steps: int) -> Iterator[Step]:
    """Yield the steps from t = 1 to 0 for rows with the given tokens `fixed`, bool [B, L]."""
    times, noise = sampler.times(num_steps), row_noise(torch.arange(len(fixed)), "remask")
    for index in range(num_steps):
        t, s = times[index : index + 2, None].expand(2, len(fixed))
        yield Step(index, num_steps, t, s, fixed, fixed, noise.at(step=index))


def remasked_law(sampler: Remasking, process: ForwardProcess, source: Source, num_steps: int) -> Tensor:
    """Return the distribution of samples by pushing all states through the rates and the predictions, [V^L].

    Only where sigma does not depend on what was drawn.
    """
    texts = all_sequences(source.length, process.vocab_size)
    nothing, masked = torch.zeros_like(texts, dtype=torch.bool), process.may_change(texts)
    state = sampler.init(empty(process, len(texts), source.length))
    kept = torch.nn.functional.one_hot(texts, process.vocab_size).double()
    mask = torch.zeros(process.vocab_size, dtype=torch.float64)
    mask[process.mask_id or 0] = 1.0
    now = torch.zeros(len(texts), dtype=torch.float64)
    now[index_of(texts, process.vocab_size)[masked.all(-1)]] = 1.0
    denoiser = exact_denoiser(sampler, process, source)
    for step in steps_of(sampler, nothing, num_steps):
        rates = sampler.rates(process, step, masked, state)
        inputs = NetworkInput(texts, sampler.network_time(process, step))
        predicted = denoiser(inputs).logits(~nothing).reshape(*texts.shape, -1).double().softmax(-1)
        again, leaves = rates.remask[..., None], rates.unmask[..., None]
        moved = torch.where(
            masked[..., None], leaves * predicted + (1 - leaves) * mask, (1 - again) * kept + again * mask
        )
        out = torch.ones(len(texts), 1, dtype=torch.float64)
        for factor in moved.unbind(1):
            out = (out[:, :, None] * factor[:, None, :]).flatten(1)
        now = now @ out
    return now


def _none(sampler: Sampler[Any], process: ForwardProcess) -> str | None:
    return None if isinstance(sampler, Remasking) else "it masks no decided token again"


def _unknown(sampler: Sampler[Any], process: ForwardProcess) -> str | None:
    if isinstance(sampler, Remasking) and (sampler.reads_samples or not sampler.neutral):
        return "what it masks again or draws depends on more than the state and the prediction"
    return _none(sampler, process)


@law(unless=_none)
def law_remasking_rates(sampler: Remasking, process: ForwardProcess) -> Iterator[Finding]:
    """0 <= sigma <= sigma_max, alpha_t (1 - sigma) + (1 - alpha_t) unmask = alpha_s, and no mask is left at t = 0."""
    length = 5
    masked, given = (torch.rand(2, 64, length, generator=seeded(0)) < 0.4).unbind(0)
    masked[0], given[1] = True, True
    masked = masked & ~given
    states = [
        Confidences(torch.rand(64, length, dtype=torch.float64, generator=seeded(seed)).masked_fill(
            masked | given, torch.inf
        ))
        for seed in (1, 2)
    ]  # fmt: skip
    finite, outside, lost, depends = True, 0.0, 0.0, False
    for num_steps in (1, 4, 50):
        for step in steps_of(sampler, given, num_steps):
            alpha_s, alpha_t = (sampler.alpha(process, time)[:, None] for time in (step.s, step.t))
            rates = sampler.rates(process, step, masked, states[0])
            finite = finite and bool(rates.remask.isfinite().all() and rates.unmask.isfinite().all())
            most = ((1 - alpha_s) / alpha_t.clamp_min(1e-300)).clamp_max(1.0)
            off = torch.maximum(-rates.remask, rates.remask - most)[~masked & ~given]
            outside = max(outside, float(off.max()))
            depends = depends or not torch.equal(sampler.sigma(process, step, masked, states[1]), rates.remask)
            if not depends:  # then sigma is one number
                clean = alpha_t * (1 - rates.remask) + (1 - alpha_t) * rates.unmask
                lost = max(lost, float((clean - alpha_s).abs().max()))
    yield holds("rates are numbers", finite, "a rate is NaN or infinite: a softmax over nothing, or a division by 0")
    yield at_most("sigma is in [0, sigma_max]", outside, ROUNDING, f"sigma is {outside:.3g} outside of [0, sigma_max]")
    yield at_most(
        "the share of decided tokens is alpha_s",
        lost,
        ROUNDING,
        f"a step leaves {lost:.3g} more or less decided than alpha(s): the network reads texts it was not trained on",
    )
    yield holds(
        "what depends on drawn tokens is declared",
        sampler.reads_samples or not depends,
        "sigma depends on the probabilities of drawn tokens, and reads_samples is False",
    )
    yield at_most(
        "no mask is left at t = 0",
        float((1 - rates.unmask[masked]).abs().max()) + float(rates.remask[~masked & ~given].max()),
        ROUNDING,
        "the last step leaves masks",
    )


@law(unless=_unknown)
def law_remasking_chain(sampler: Remasking, process: ForwardProcess) -> Iterator[Finding]:
    """Samples follow the rates, and the exact law of the chain tends to the data as steps get finer if `faithful`."""
    source = toy_source(process)
    data = source.joint.flatten()
    after = {num: total_variation(remasked_law(sampler, process, source, num), data) for num in (16, 64, 256)}
    for coarse, fine in ((16, 64), (64, 256)) if sampler.faithful else ():
        yield at_most(
            "the chain tends to the data",
            after[fine],
            0.7 * after[coarse] + LENGTH * float(process.alpha(torch.ones(1, dtype=torch.float64))),
            f"{fine} steps end {after[fine]:.3g} (total variation) from the data, {coarse} steps {after[coarse]:.3g}",
        )
    done = generate(exact_denoiser(sampler, process, source), process, sampler, empty(process, NUM_SAMPLES), 6, 4)
    expected = remasked_law(sampler, process, source, 6) * NUM_SAMPLES
    p = chi_square_p(counts_of(done.tokens, process.vocab_size), expected)
    yield at_least(
        "samples follow the chain", p, FALSE_ALARM, f"samples do not follow the rates (chi-square p = {p:.2g})"
    )


LAWS = [law_remasking_rates, law_remasking_chain]
"""Of a sampler and a process."""
