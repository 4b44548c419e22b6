"""Entropy-bounded decoding against all prefixes of the order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlmkit.samplers.entropy_bound import EntropyBound
from samplers.test_threshold import chosen


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.7, 1.2, 2.5, 100.0])
@pytest.mark.parametrize("score", ["prob", "margin", "entropy"])
def test_the_entropy_bound_against_all_prefixes(score, gamma):
    """300 rows with unequal numbers of undecided positions."""
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(300, 6, 5, dtype=torch.float64, generator=generator)
    where = torch.rand(300, 6, generator=generator) < 0.7
    where[:, 0] = True
    sampler = EntropyBound(score=score, gamma=gamma)
    got = chosen(sampler, logits, where)
    probs = logits.softmax(-1)
    h = -(probs * probs.log()).sum(-1)
    best = probs.sort(-1, descending=True).values
    key = {"prob": best[..., 0], "margin": best[..., 0] - best[..., 1], "entropy": -h}[score]
    for row in range(300):
        places = sorted(where[row].nonzero()[:, 0].tolist(), key=lambda place: -float(key[row, place]))
        fits = [k for k in range(1, len(places) + 1) if excess(h[row, places[:k]]) <= gamma + 1e-6]
        assert got[row] == sorted(places[: max(fits)])


def excess(h: Tensor) -> float:
    return float(h.sum() - h.max())


def test_certain_positions_are_decided_at_no_cost():
    """gamma = 0 decides one uncertain position and all certain ones before it."""
    logits = torch.full((1, 4, 3), float("-inf"))
    logits[0, [0, 2], 1] = 0.0
    logits[0, [1, 3]] = 0.0
    (decided,) = chosen(EntropyBound(gamma=0.0), logits)
    assert {0, 2} < set(decided)
    assert len(decided) == 3
