"""What the laws of objectives and samplers are tried on: a small source, its exact predictor, a noised batch.

Shapes: B batch, L length, V vocabulary (small).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlmkit.laws.predictions import read_as
from dlmkit.laws.source import Source, random_source
from dlmkit.objectives.base import Objective
from dlmkit.processes.base import ForwardProcess
from dlmkit.types import Noised, Prediction, TokenLoss

LENGTH = 3

Predictor = Callable[[Tensor, Tensor], Prediction]
"""From x_t int64 [B, L] and t float64 [B] to a prediction."""


def toy_source(process: ForwardProcess, length: int = LENGTH) -> Source:
    """Return a source over the process's vocabulary without its mask, whose positions depend on each other."""
    return random_source(length, process.vocab_size, process.mask_id)


def exact_predictor(objective: Objective[Any], process: ForwardProcess, source: Source) -> Predictor:
    """Return the exact predictor in the objective's parameterization."""
    return lambda x_t, t: source.exact(objective.parameterization, process, x_t, t)


def losses_of(objective: Objective[Any], below: Prediction, noised: Noised, process: ForwardProcess) -> TokenLoss:
    """Return the losses of a network whose prediction of x_0 is `below`, in the objective's parameterization."""
    return objective(read_as(objective.parameterization, below, process, noised.x_t, noised.t), noised, process)


def seeded(seed: int) -> torch.Generator:
    """Return a generator for fixed logits."""
    return torch.Generator().manual_seed(seed)


def a_batch(process: ForwardProcess, seed: int = 0) -> tuple[Noised, Tensor]:
    """Return random tokens noised at times all over (0, 1), some positions not scored, and logits [B, L, V]."""
    generator, size, mask_id = seeded(seed), process.vocab_size, process.mask_id
    x_0 = torch.randint(size - (mask_id is not None), (64, 6), generator=generator)
    if mask_id is not None:
        x_0 += x_0 >= mask_id
    scored = torch.rand(x_0.shape, generator=generator) < 0.8
    t = torch.linspace(1e-4, 1 - 1e-4, len(x_0), dtype=torch.float64)
    x_t = process.corrupt(x_0, t, scored, generator)
    weight = torch.rand(len(x_0), dtype=torch.float64, generator=generator) + 0.5
    logits = 2 * torch.randn(*x_0.shape, size, dtype=torch.float64, generator=generator)
    if mask_id is not None:
        logits[..., mask_id] = float("-inf")
    return Noised(x_0, x_t, t, scored, weight), logits
