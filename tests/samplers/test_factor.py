"""Factor decoding: the largest k with (k + 1) (1 - c_k) < factor, by hand."""

from __future__ import annotations

import pytest
import torch

from dlmkit.samplers.factor import Factor
from samplers.test_threshold import CONFIDENCE, chosen, log_probs

ORDER = [0, 3, 2, 1, 4]
"""Of CONFIDENCE; (k + 1) (1 - c_k) is 0.1, 0.27, 0.4, 2.5 and 4.2."""


@pytest.mark.parametrize(
    ("factor", "k"), [(0.0, 1), (0.05, 1), (0.11, 1), (0.28, 2), (0.39, 2), (0.41, 3), (1.0, 3), (2.6, 4), (4.3, 5)]
)
def test_k_by_hand(factor, k):
    assert chosen(Factor(factor=factor), log_probs(CONFIDENCE)[None]) == [sorted(ORDER[:k])]


def test_k_is_the_largest_that_fits_though_a_smaller_one_does_not():
    """(k + 1) (1 - c_k) may fall with k: or rise: 0.71, 0.7, 0.69 gives 0.58, 0.9, 1.24."""
    assert chosen(Factor(factor=1.0), log_probs((0.71, 0.7, 0.69))[None]) == [[0, 1]]
    # 0.6, 0.42, of which the second fits 0.5 and the first does not
    assert chosen(Factor(factor=0.5), log_probs((0.7, 0.86))[None]) == [[1]]
    assert chosen(Factor(factor=0.43), log_probs((0.86, 0.86001))[None]) == [[0, 1]]


def test_rows_are_treated_apart():
    logits = torch.stack([log_probs(CONFIDENCE), log_probs((0.3, 0.3, 0.99, 0.3, 0.3))])
    where = torch.tensor([[True] * 5, [False, True, True, False, False]])
    assert chosen(Factor(factor=0.41), logits, where) == [[0, 2, 3], [2]]
