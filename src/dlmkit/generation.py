"""The one way from a network to tokens: the sampling loop, and requests completed by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dlmkit.backbones.base import Backbone
from dlmkit.processes.base import ForwardProcess
from dlmkit.randomness import RowNoise, row_noise
from dlmkit.requests import Request, batches
from dlmkit.samplers.base import Reading, Sampler, Step, Stepped
from dlmkit.tensors import categorical
from dlmkit.types import Canvas, Denoiser

BATCH_SIZE = 64
"""Texts that are generated at a time."""


@dataclass(frozen=True)
class Event:
    """One step of the rows that were not finished before it.

    Attributes:
        index: 0 for the first step.
        num_steps: how many steps there are at most.
        rows: places of the R rows in the canvas, int64 [R].
        before: tokens before the step, int64 [R, L].
        after: tokens after it, int64 [R, L].
        reading: what was read of the network, positions bool [R, L]; ``None`` where it was not called.
        t: time before the step, float64 [R].
        passes: of the network that each row took part in, int64 [R].
    """

    index: int
    num_steps: int
    rows: Tensor
    before: Tensor
    after: Tensor
    reading: Reading | None
    t: Tensor
    passes: Tensor


OnStep = Callable[[Event], None]
"""Called after each step."""


@dataclass(frozen=True)
class Beginning:
    """A batch before its first step.

    Attributes:
        tokens: given tokens, and noise elsewhere, int64 [B, L].
        fixed: given positions, bool [B, L].
        blank: positions whose token means nothing yet, as there is no noise, bool [B, L].
        places: of the rows among all requests, int64 [B].
    """

    tokens: Tensor
    fixed: Tensor
    blank: Tensor
    places: Tensor


OnStart = Callable[[Beginning], None]
"""Called before the first step of a batch."""


@dataclass(frozen=True)
class Generated:
    """A canvas with its free positions filled.

    Attributes:
        tokens: int64 [B, L].
        fixed: bool [B, L], as given.
        passes: passes of the network for each row (NFE), int64 [B]; those that only fill a cache are not counted.
        num_steps: steps taken.
    """

    tokens: Tensor
    fixed: Tensor
    passes: Tensor
    num_steps: int


@torch.no_grad()
def generate(
    denoiser: Denoiser,
    process: ForwardProcess,
    sampler: Sampler[Any],
    canvas: Canvas,
    num_steps: int,
    noise: RowNoise | int = 0,
    on_step: OnStep | None = None,
    stop_id: int | None = None,
    on_start: OnStart | None = None,
) -> Generated:
    """Return the canvas with its free positions filled: the only sampling loop there is.

    Finished rows leave the batch: what the sampler will not change any more, or has `stop_id` behind decided tokens.

    Args:
        denoiser: the network (a backbone in eval mode).
        process: the noise that it was trained on.
        sampler: the reverse step.
        canvas: fixed tokens stay; free positions start from a prior sample.
        num_steps: how many steps to take, at least 1; the sampler may take another number, see `Sampler.num_steps`.
        noise: the only source of randomness, on the canvas's device, or a seed.
        on_step: called after every step.
        stop_id: id after which a text ends, if nothing given is behind it; free tokens there are left as they are.
        on_start: called before the first step.

    Raises:
        ValueError: `num_steps` is below 1, or given tokens that the sampler cannot work around.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps {num_steps} is below 1: ask for at least one step")
    rows = torch.arange(len(canvas.tokens), device=canvas.tokens.device)
    noise = row_noise(rows, noise) if isinstance(noise, int) else noise
    tokens = torch.where(canvas.fixed, canvas.tokens, prior_sample(process, canvas.tokens.shape[1], noise))
    _announce(on_start, tokens, canvas, process)
    going, num_steps = _Going(rows, noise, sampler.init(canvas)), sampler.num_steps(canvas, num_steps)
    times, passes, taken = sampler.times(num_steps).to(tokens.device), torch.zeros_like(rows), 0
    for index in range(num_steps):
        going = _without_finished(going, sampler, process, tokens, canvas.fixed, stop_id)
        if not len(going.rows):
            break
        before, step = tokens[going.rows], _step(index, num_steps, times, canvas.fixed[going.rows], going.noise)
        done = sampler.step(denoiser, process, before, step, going.state)
        event = _event(step, going.rows, before, done)
        going, taken = replace(going, state=done.state), index + 1
        tokens[going.rows] = done.tokens
        passes[going.rows] += event.passes
        if on_step is not None:
            on_step(event)
    return Generated(tokens, canvas.fixed, passes, taken)


@dataclass(frozen=True)
class _Going:
    """The rows that are not finished: their places in the batch, int64 [R], their noise, and the sampler's state."""

    rows: Tensor
    noise: RowNoise
    state: Any


def _announce(on_start: OnStart | None, tokens: Tensor, canvas: Canvas, process: ForwardProcess) -> None:
    if on_start is not None:
        blank = torch.zeros_like(canvas.fixed) if process.has_noise else ~canvas.fixed
        on_start(Beginning(tokens.clone(), canvas.fixed, blank, torch.arange(len(tokens), device=tokens.device)))


def _step(index: int, num_steps: int, times: Tensor, fixed: Tensor, noise: RowNoise) -> Step:
    t, s = times[index : index + 2, None].expand(2, len(fixed))
    return Step(index, num_steps, t, s, fixed, fixed, noise.at(step=index))


def _event(step: Step, rows: Tensor, before: Tensor, done: Stepped[Any]) -> Event:
    passes = torch.zeros_like(rows) if done.reading is None else done.reading.where.any(-1).long()
    return Event(step.index, step.num_steps, rows, before, done.tokens, done.reading, step.t, passes)


def _without_finished(
    going: _Going,
    sampler: Sampler[Any],
    process: ForwardProcess,
    tokens: Tensor,
    fixed: Tensor,
    stop_id: int | None,
) -> _Going:
    tokens, fixed = tokens[going.rows], fixed[going.rows]
    undecided = sampler.undecided(process, tokens, fixed, going.state)
    finished = _finished(undecided, tokens, fixed, stop_id)
    if not finished.any():
        return going
    left = (~finished).nonzero()[:, 0]
    return _Going(going.rows[left], going.noise.select(left), sampler.select(going.state, left))


def _finished(undecided: Tensor, tokens: Tensor, fixed: Tensor, stop_id: int | None) -> Tensor:
    """Return bool [B]: rows with nothing undecided, or nothing before the `stop_id` that ends the text."""
    if stop_id is None:
        return ~undecided.any(-1)
    stopped = (_stops(tokens, fixed, stop_id) & ~undecided).cumsum(-1) > 0
    return ~(undecided & ~stopped).any(-1)


def _stops(tokens: Tensor, fixed: Tensor, stop_id: int) -> Tensor:
    """Return bool [B, L]: free `stop_id`s with nothing given behind them, which a text must keep."""
    behind = fixed.flip(-1).cumsum(-1).flip(-1) > 0
    return (tokens == stop_id) & ~behind


def prior_sample(process: ForwardProcess, length: int, noise: RowNoise) -> Tensor:
    """Return int64 [B, L] for the free positions: noise at t = 1, or zeros where the process has none."""
    device = noise.seeds.device
    if not process.has_noise:
        return torch.zeros(len(noise.seeds), length, dtype=torch.int64, device=device)
    mass = process.coefficients(torch.ones(1, dtype=torch.float64, device=device)).mass[0]
    uniform = noise.uniform("prior", length)
    return categorical(mass, uniform.flatten()).reshape(uniform.shape)


@dataclass(frozen=True)
class Completions:
    """Completed requests, in their order.

    Attributes:
        tokens: ids of each request, given ones included.
        passes: passes of the network for each request.
        num_steps: sampling steps taken, over all batches.
    """

    tokens: list[list[int]]
    passes: list[int]
    num_steps: int


def complete(
    backbone: Backbone,
    process: ForwardProcess,
    sampler: Sampler[Any],
    requests: Sequence[Request],
    num_steps: int,
    seed: int | str,
    batch_size: int = BATCH_SIZE,
    on_step: OnStep | None = None,
    stop_id: int | None = None,
    places: Sequence[int] | None = None,
    denoiser: Denoiser | None = None,
    on_start: OnStart | None = None,
) -> Completions:
    """Return the requests with their free positions filled.

    The backbone runs in eval mode and with full attention, and is left in the mode that it was in. A request's tokens
    depend on its place and the seed, not on the other requests or on `batch_size`.

    Args:
        backbone: the network.
        process: the noise that it was trained on.
        sampler: the reverse step.
        requests: of any lengths.
        num_steps: steps of each batch, see `generate`.
        seed: of the noise.
        batch_size: texts at a time.
        on_step: called after every step of every batch.
        stop_id: see `generate`; what is behind it is cut off.
        places: of the requests, where these are a part of many; 0, 1, ... by default.
        denoiser: what is called in the backbone's place, such as the backbone with guidance.
        on_start: called before the first step of every batch.
    """
    device = next(backbone.parameters()).device
    tokens: dict[int, list[int]] = {}
    passes: dict[int, int] = {}
    steps = 0
    places = range(len(requests)) if places is None else places
    with evaluating(backbone):
        for batch in batches(requests, batch_size, device):
            known_by = torch.tensor([places[index] for index in batch.indices], device=device)
            begin = None if on_start is None else partial(_begin, on_start, known_by)
            noise, network = row_noise(known_by, seed), denoiser or backbone
            done = generate(network, process, sampler, batch.canvas, num_steps, noise, on_step, stop_id, begin)
            tokens.update(zip(batch.indices, until_stop(done, stop_id), strict=True))
            passes.update(zip(batch.indices, done.passes.tolist(), strict=True))
            steps += done.num_steps
    order = range(len(requests))
    return Completions([tokens[index] for index in order], [passes[index] for index in order], steps)


def _begin(on_start: OnStart, places: Tensor, beginning: Beginning) -> None:
    on_start(replace(beginning, places=places))


def until_stop(done: Generated, stop_id: int | None) -> list[list[int]]:
    """Return each row's ids up to the first free `stop_id` behind all given tokens; it is included."""
    texts = done.tokens.tolist()
    if stop_id is None:
        return texts
    stops = _stops(done.tokens, done.fixed, stop_id)
    ends = torch.where(stops.any(-1), stops.long().argmax(-1) + 1, stops.shape[1]).tolist()
    return [row[:end] for row, end in zip(texts, ends, strict=True)]


def planned_steps(
    sampler: Sampler[Any], requests: Sequence[Request], num_steps: int, batch_size: int = BATCH_SIZE
) -> int:
    """Return how many steps `complete` takes at most over all batches, for a progress bar."""
    return sum(sampler.num_steps(batch.canvas, num_steps) for batch in batches(requests, batch_size, "cpu"))


def for_block_size(sampler: Sampler[Any], block_size: int | None) -> Sampler[Any]:
    """Return the sampler with the block size that the network is trained with now, where it has blocks at all."""
    if block_size is None or sampler.block_size in (None, block_size):
        return sampler
    return sampler.with_settings(block_size=block_size)


@contextmanager
def evaluating(backbone: Backbone) -> Iterator[None]:
    """Put the network in eval mode inside the `with` block, and back in its former mode after it."""
    training = backbone.training
    backbone.eval()
    try:
        yield
    finally:
        backbone.train(training)
