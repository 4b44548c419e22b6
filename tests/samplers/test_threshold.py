"""Threshold decoding against hand-computed sets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlmkit.randomness import row_noise
from dlmkit.samplers.base import Reading, Step
from dlmkit.samplers.entropy_bound import EntropyBound
from dlmkit.samplers.ordered import Ordered
from dlmkit.samplers.threshold import Threshold

CONFIDENCE = (0.95, 0.5, 0.9, 0.91, 0.3)


def log_probs(confidence: tuple[float, ...]) -> Tensor:
    """Predictions [L, 4] whose likeliest token has these probabilities, the rest shared evenly."""
    c = torch.tensor(confidence, dtype=torch.float64)[:, None]
    return torch.cat([c, ((1 - c) / 3).expand(-1, 3)], dim=1).log()


def chosen(sampler: Ordered, logits: Tensor, where: Tensor | None = None) -> list[list[int]]:
    """Positions that are decided, of each row of logits [B, L, V]."""
    where = torch.ones(logits.shape[:2], dtype=torch.bool) if where is None else where
    nothing, t = torch.zeros_like(where), torch.ones(len(where), dtype=torch.float64)
    step = Step(0, 5, t, t, nothing, nothing, row_noise(torch.arange(len(where)), 0))
    decided = sampler.choose(Reading(where, logits[where]), step, None)
    return [row.nonzero()[:, 0].tolist() for row in decided]


@pytest.mark.parametrize(
    ("threshold", "expected"), [(0.905, [0, 3]), (0.89, [0, 2, 3]), (0.96, [0]), (1.0, [0]), (0.0, [0, 1, 2, 3, 4])]
)
def test_all_positions_above_the_threshold_and_the_surest_in_any_case(threshold, expected):
    assert chosen(Threshold(threshold=threshold), log_probs(CONFIDENCE)[None]) == [expected]


def test_rows_are_treated_apart_and_decided_positions_are_left_out():
    logits = torch.stack([log_probs(CONFIDENCE), log_probs((0.4, 0.97, 0.3, 0.3, 0.3)), log_probs(CONFIDENCE)])
    where = torch.tensor([[True] * 5, [True] * 5, [False, True, False, False, True]])
    assert chosen(Threshold(threshold=0.905), logits, where) == [[0, 3], [1], [1]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Threshold(threshold=1.5), r"threshold 1.5 is outside \[0, 1\]"),
        (lambda: EntropyBound(gamma=-1.0), r"gamma -1.0 is outside \[0, 1000000\]"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
