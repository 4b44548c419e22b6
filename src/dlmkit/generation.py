"""The one way from a network to tokens: the sampling loop, and requests completed by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlmkit.backbones.base import Backbone
from dlmkit.processes.base import ForwardProcess
from dlmkit.randomness import RowNoise, row_noise
from dlmkit.requests import Request, batches
from dlmkit.samplers.base import Reading, Sampler, Step
from dlmkit.samplers.drawing import categorical
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
    """

    index: int
    num_steps: int
    rows: Tensor
    before: Tensor
    after: Tensor
    reading: Reading | None
    t: Tensor

    @property
    def passes(self) -> Tensor:
        """Passes of the network that each row took part in, int64 [R]: 0 or 1."""
        if self.reading is None:
            return torch.zeros_like(self.rows)
        return self.reading.where.any(-1).long()


OnStep = Callable[[Event], None]
"""Called after each step."""


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
) -> Generated:
    """Return the canvas with its free positions filled: the only sampling loop there is.

    Rows that are finished leave the batch: those that the sampler will not change any more, and those that have
    `stop_id` with nothing undecided before it.

    Args:
        denoiser: the network (a backbone in eval mode).
        process: the noise that it was trained on.
        sampler: the reverse step.
        canvas: fixed tokens stay; free positions start from a prior sample.
        num_steps: how many steps to take, at least 1; the sampler may take another number, see `Sampler.num_steps`.
        noise: the only source of randomness, on the canvas's device, or a seed for it.
        on_step: called after every step.
        stop_id: id after which a row's text ends, such as that of the end of a document, where nothing given stands
            behind it. Free tokens behind the first one are left as they are, masks among them.

    Raises:
        ValueError: `num_steps` is below 1, or given tokens that the sampler cannot work around.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps {num_steps} is below 1: ask for at least one step")
    rows = torch.arange(len(canvas.tokens), device=canvas.tokens.device)
    if isinstance(noise, int):
        noise = row_noise(rows, noise)
    state = sampler.init(canvas)
    num_steps = sampler.num_steps(canvas, num_steps)
    tokens = torch.where(canvas.fixed, canvas.tokens, prior_sample(process, canvas.tokens.shape[1], noise))
    times = sampler.times(num_steps).to(tokens.device)
    passes, index = torch.zeros_like(rows), 0
    for index in range(num_steps):
        undecided = sampler.undecided(process, tokens[rows], canvas.fixed[rows], state)
        going = ~_finished(undecided, tokens[rows], canvas.fixed[rows], stop_id)
        if not going.all():
            left = going.nonzero()[:, 0]
            rows, state, noise = rows[left], sampler.select(state, left), noise.select(left)
            if not len(rows):
                break
        before, fixed = tokens[rows], canvas.fixed[rows]
        t, s = times[index : index + 2, None].expand(2, len(rows))
        step = Step(index, num_steps, t, s, fixed, fixed, noise.at(step=index))
        done = sampler.step(denoiser, process, before, step, state)
        event = Event(index, num_steps, rows, before, done.tokens, done.reading, t)
        state, tokens[rows] = done.state, done.tokens
        passes[rows] += event.passes
        if on_step is not None:
            on_step(event)
    else:
        index += 1
    return Generated(tokens, canvas.fixed, passes, index)


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
    """
    device = next(backbone.parameters()).device
    tokens: dict[int, list[int]] = {}
    passes: dict[int, int] = {}
    steps = 0
    places = range(len(requests)) if places is None else places
    with evaluating(backbone):
        for batch in batches(requests, batch_size, device):
            noise = row_noise(torch.tensor([places[index] for index in batch.indices], device=device), seed)
            done = generate(denoiser or backbone, process, sampler, batch.canvas, num_steps, noise, on_step, stop_id)
            tokens.update(zip(batch.indices, until_stop(done, stop_id), strict=True))
            passes.update(zip(batch.indices, done.passes.tolist(), strict=True))
            steps += done.num_steps
    order = range(len(requests))
    return Completions([tokens[index] for index in order], [passes[index] for index in order], steps)


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
