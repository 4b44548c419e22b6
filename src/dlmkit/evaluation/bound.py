"""The bound of held-out blocks: its integral over a shared grid of times, and its two ends."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmkit.evaluation.likelihood import BlockScores, noisy_grid
from dlmkit.noising import corrupt_blocks, pure_noise
from dlmkit.objectives.base import Objective
from dlmkit.objectives.ends import prior, reconstruction
from dlmkit.processes.base import ForwardProcess
from dlmkit.types import Batch, Network, Noised, Predictor

ROUNDING = 1e-12
"""A schedule whose alpha(1) is less than this has 0 there but for rounding."""


def score_blocks(
    objective: Objective, process: ForwardProcess, network: Network, batch: Batch, blocks: Tensor, num_times: int
) -> BlockScores:
    """Return what the network gives the blocks: a bound on -log p(x_0) of each, or the value itself.

    Where the schedule leaves out an end of the bound's range (see `ForwardProcess.left_out`), the term of that end is
    part of the sum; it takes one pass of the network.

    Args:
        objective: whose nll is integrated.
        process: the noise.
        network: what predicts.
        batch: B blocks, on the network's device.
        blocks: int64 [B], index of each in the validation set: times and noise depend on nothing else.
        num_times: times of the grid; 1 for an exact objective.
    """
    num_parts, numbers = objective.num_times(batch.tokens.shape[1]), blocks.tolist()

    def asked(x_t: Tensor, t: Tensor, weight: Tensor) -> tuple[Predictor, Noised]:
        return objective.ask(network, batch, x_t, t), Noised(batch.tokens, x_t, t, batch.scored, weight)

    def at_end(time: float, x_t: Tensor) -> tuple[Predictor, Noised]:
        shape = (len(batch), num_parts) if num_parts > 1 else (len(batch),)
        t = torch.full(shape, time, dtype=torch.float64, device=batch.tokens.device)
        return asked(x_t.to(t.device), t, torch.ones_like(t))

    nll = torch.zeros(len(batch), dtype=torch.float64, device=batch.tokens.device)
    for t, weight, x_t in noisy_grid(process, batch, blocks, num_times, num_parts, objective.noise_time):
        nll += objective(*asked(x_t, t, weight), process).nll.double().sum(-1) / num_times

    first, last = torch.zeros_like(nll), torch.zeros_like(nll)
    before, after = (0.0, 0.0) if objective.exact else process.left_out
    # Noise is drawn on the CPU, lest it depend on the device.
    if before > ROUNDING:
        x_t = corrupt_blocks(
            process, batch.to("cpu"), torch.zeros(len(batch), dtype=torch.float64), numbers, "reconstruction"
        )
        first = reconstruction(objective, *at_end(0.0, x_t), process).sum(-1)
    if after > ROUNDING:
        last = prior(objective, *at_end(1.0, pure_noise(process, batch.to("cpu"), numbers, "prior")), process).sum(-1)
    return BlockScores(nll + first + last, first, last)
