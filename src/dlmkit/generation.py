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
from dlmkit.requests import Request, batches
from dlmkit.samplers.base import Sampler, Step
from dlmkit.types import Canvas, Denoiser

BATCH_SIZE = 64
"""Texts that are generated at a time."""


@dataclass(frozen=True)
class Completions:
    """Completed requests.

    Attributes:
        tokens: ids of each request, given ones included, in the order of the requests.
        num_steps: sampling steps taken, over all batches.
    """

    tokens: list[list[int]]
    num_steps: int


OnStep = Callable[[int, Tensor], None]
"""Called after each step with (step index, tokens [B, L])."""


@torch.no_grad()
def generate(
    denoiser: Denoiser,
    process: ForwardProcess,
    sampler: Sampler[Any],
    canvas: Canvas,
    num_steps: int,
    generator: torch.Generator,
    on_step: OnStep | None = None,
) -> Canvas:
    """Return the canvas with its free positions filled: the only sampling loop there is.

    Args:
        denoiser: the network (a backbone in eval mode).
        process: the noise that it was trained on.
        sampler: the reverse step.
        canvas: fixed tokens stay; free positions start from a prior sample.
        num_steps: how many steps to take, at least 1; the sampler may take another number, see `Sampler.num_steps`.
        generator: on the canvas's device; the only source of randomness.
        on_step: called after every step.

    Raises:
        ValueError: `num_steps` is below 1, or given tokens that the sampler cannot work around.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps {num_steps} is below 1: ask for at least one step")
    state = sampler.init(canvas)
    num_steps = sampler.num_steps(canvas, num_steps)
    batch, length = canvas.tokens.shape
    tokens = torch.where(canvas.fixed, canvas.tokens, prior_sample(process, (batch, length), generator))
    times = sampler.times(num_steps).to(tokens.device)
    for index in range(num_steps):
        step = Step(index, num_steps, times[index].repeat(batch), times[index + 1].repeat(batch))
        tokens, state = sampler.step(denoiser, process, tokens, canvas.fixed, step, state, generator)
        if on_step is not None:
            on_step(index, tokens)
    return Canvas(tokens, canvas.fixed)


def prior_sample(process: ForwardProcess, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return int64 tokens of `shape` (B, L) for the free positions: noise, or zeros where the process has none."""
    if process.has_noise:
        return process.prior(shape, generator)
    return torch.zeros(shape, dtype=torch.int64, device=generator.device)


def complete(
    backbone: Backbone,
    process: ForwardProcess,
    sampler: Sampler[Any],
    requests: Sequence[Request],
    num_steps: int,
    generator: torch.Generator,
    batch_size: int = BATCH_SIZE,
    on_step: OnStep | None = None,
) -> Completions:
    """Return the requests with their free positions filled.

    The backbone runs in eval mode and with full attention, and is left in the mode that it was in.

    Args:
        backbone: the network, on the generator's device.
        process: the noise that it was trained on.
        sampler: the reverse step.
        requests: of any lengths.
        num_steps: steps of each batch, see `generate`.
        generator: the only source of randomness; batches draw from it in turn.
        batch_size: texts at a time.
        on_step: called after every step of every batch.
    """
    texts: dict[int, list[int]] = {}
    steps = 0
    with evaluating(backbone):
        for batch in batches(requests, batch_size, generator.device):
            filled = generate(backbone, process, sampler, batch.canvas, num_steps, generator, on_step)
            texts.update(zip(batch.indices, filled.tokens.tolist(), strict=True))
            steps += sampler.num_steps(batch.canvas, num_steps)
    return Completions([texts[index] for index in range(len(requests))], steps)


def planned_steps(
    sampler: Sampler[Any], requests: Sequence[Request], num_steps: int, batch_size: int = BATCH_SIZE
) -> int:
    """Return how many steps `complete` takes over all batches, for a progress bar."""
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
