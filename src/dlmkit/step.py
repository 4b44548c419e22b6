"""One step without Lightning: from a noised batch through the network to per-token losses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dlmkit.objectives.base import Objective
from dlmkit.processes.base import ForwardProcess
from dlmkit.types import FULL_ATTENTION, Attention, Batch, Context, Denoiser, NetworkInput, Noised, TokenLoss


def losses(
    objective: Objective[Any],
    process: ForwardProcess,
    network: Denoiser,
    noised: Noised,
    attention: Attention = FULL_ATTENTION,
) -> TokenLoss:
    """Return the losses [B, L] of `network` on a noised batch; training and evaluation both call this.

    Args:
        objective: loss and bound.
        process: the noise that made the batch.
        network: the denoiser.
        noised: from `Corruption.draw`.
        attention: share of the future that the network attends to.
    """
    inputs = network_input(objective, noised, attention)
    if inputs.context is not None and objective.noisy_positions_only:
        read = process.may_change(noised.x_t) & noised.scored
        inputs = replace(inputs, context=replace(inputs.context, read=read))
    return objective(network(inputs), noised, process)


def network_input(objective: Objective[Any], noised: Noised, attention: Attention = FULL_ATTENTION) -> NetworkInput:
    """Return the network's input for a noised batch: with the clean tokens beside it where the objective has blocks."""
    context = None if objective.block_size is None else Context(noised.x_0, objective.block_size)
    return NetworkInput(noised.x_t, noised.t, noised.segments, context, attention)


def discretise(t: Tensor, num_steps: int | None) -> Tensor:
    """Return t in (0, 1], of any shape, rounded up to a multiple of 1 / num_steps; as it is in continuous time.

    Each multiple then stands for the draws of the interval below it.
    """
    if num_steps is None:
        return t
    # Less a rounding error, so that i / T does not become (i + 1) / T.
    return torch.ceil(t * num_steps - 1e-9).clamp(1, num_steps) / num_steps


def without_first(batch: Batch) -> Batch:
    """Return the batch with token 0 given, for a network that has no prediction of it: neither noised nor counted."""
    scored = batch.scored.clone()
    scored[:, 0] = False
    return Batch(batch.tokens, scored, batch.segments)
