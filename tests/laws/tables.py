"""Tables that stand for networks, and batches for them to predict."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmkit.laws.objectives import seeded
from dlmkit.laws.predictions import TablePrediction
from dlmkit.laws.source import Source, index_of, random_source
from laws.parts import MASK_ID, VOCAB_SIZE

LENGTH = 3


def source(length: int = LENGTH) -> Source:
    return random_source(length, VOCAB_SIZE, MASK_ID)


def network_without_time(seed: int = 7) -> Tensor:
    """Logits for every x_t, [V^L, L, V]: the predictions of some network that does not read t."""
    table = torch.randn(VOCAB_SIZE**LENGTH, LENGTH, VOCAB_SIZE, dtype=torch.float64, generator=seeded(seed))
    table[..., MASK_ID] = float("-inf")
    return table


def predictor_with_time(x_t: Tensor, t: Tensor) -> TablePrediction:
    """The prediction of some network that reads t."""
    return TablePrediction(network_without_time()[index_of(x_t, VOCAB_SIZE)] * (0.5 + t)[:, None, None])
