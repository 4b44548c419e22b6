"""The NELBO of held-out sequences: the integral over a shared grid of times, and the two boundary terms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlmkit.evaluation.boundary_terms import prior, reconstruction
from dlmkit.evaluation.time_grid import corrupt_times, noised_grid, prior_sample
from dlmkit.objectives.base import Objective
from dlmkit.objectives.block import num_blocks
from dlmkit.processes.base import EndShares, ForwardProcess
from dlmkit.step import network_input
from dlmkit.types import Batch, Denoiser, Noised, Prediction

ROUNDING = 1e-12
"""A schedule whose alpha(1) is less than this has 0 there but for rounding."""


@dataclass(frozen=True)
class SequenceScores:
    """The NELBO of B sequences, float64 [B], nats per sequence.

    Attributes:
        nll: -log p(x_0), or a bound on it; the other two are part of it.
        reconstruction: the bound's term at t = 0, zero where alpha(0) = 1.
        prior: the bound's term at t = 1, zero where alpha(1) = 0.
    """

    nll: Tensor
    reconstruction: Tensor
    prior: Tensor


def score_sequences(
    objective: Objective[Any],
    process: ForwardProcess,
    network: Denoiser,
    batch: Batch,
    indices: Tensor,
    num_times: int,
) -> SequenceScores:
    """Return a bound on -log p(x_0) of each sequence, or the value itself.

    The network runs in whatever precision it is called in; its head, and all that follows, in float32 or better.

    Where the schedule leaves out an end of the integral (see `ForwardProcess.end_shares`), the boundary term of that
    end is part of the sum; it takes one pass of the network.

    Args:
        objective: whose nll is integrated.
        process: the noise; tokens are noised independently, whatever the corruption in training.
        network: the denoiser.
        batch: B sequences, on the network's device.
        indices: int64 [B], index of each in the validation set: times and noise depend on nothing else.
        num_times: T, times of the grid; 1 for an exact objective.
    """
    blocks, numbers = num_blocks(batch.tokens.shape[1], objective.block_size), indices.tolist()
    nll = torch.zeros(len(batch), dtype=torch.float64, device=batch.tokens.device)
    for noised in noised_grid(process, batch, indices, num_times, blocks, objective.num_steps):
        with _evaluated(objective, network, noised) as prediction:
            nll += objective(prediction, noised, process).nll.double().sum(-1) / num_times

    first, last = torch.zeros_like(nll), torch.zeros_like(nll)
    ends = EndShares(0.0, 0.0) if objective.exact else process.end_shares
    # Noise is drawn on the CPU, so that it does not depend on the device.
    if ends.noisy_at_0 > ROUNDING:
        zero = torch.zeros(1, len(batch), dtype=torch.float64)
        (x_t,) = corrupt_times(process, batch.to("cpu"), zero, numbers, "reconstruction")
        noised = _at(0.0, batch, x_t, blocks)
        with _evaluated(objective, network, noised) as prediction:
            first = reconstruction(objective, prediction, noised, process).sum(-1)
    if ends.clean_at_1 > ROUNDING:
        noised = _at(1.0, batch, prior_sample(process, batch.to("cpu"), numbers, "prior"), blocks)
        with _evaluated(objective, network, noised) as prediction:
            last = prior(objective, prediction, noised, process).sum(-1)
    return SequenceScores(nll + first + last, first, last)


@contextmanager
def _evaluated(objective: Objective[Any], network: Denoiser, noised: Noised) -> Iterator[Prediction]:
    """Give the network's prediction, in float32 and outside of autocast, under which products would be in bf16."""
    prediction = network(network_input(objective, noised)).in_float32()
    with torch.autocast(noised.x_t.device.type, enabled=False):
        yield prediction


def _at(time: float, batch: Batch, x_t: Tensor, num_blocks: int) -> Noised:
    """Return the noised batch at one end of time."""
    shape = (len(batch), num_blocks) if num_blocks > 1 else (len(batch),)
    t = torch.full(shape, time, dtype=torch.float64, device=batch.tokens.device)
    return Noised(batch.tokens, x_t.to(t.device), t, batch.scored, torch.ones_like(t), batch.segments)
