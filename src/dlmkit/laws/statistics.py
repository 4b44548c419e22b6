"""Statistical tests for laws about random draws."""

from __future__ import annotations

import torch
from torch import Tensor


def chi_square_p(observed: Tensor, expected: Tensor) -> float:
    """The p-value of counts [C] against expected counts [C]; the rarest are pooled until 5 are expected.

    A cell that cannot occur (expected 0) and does gives p = 0.
    """
    if (observed[expected == 0] > 0).any():
        return 0.0
    order = expected.argsort()
    observed, expected = observed[order].double(), expected[order].double()
    pooled = 1
    while pooled < len(expected) and expected[:pooled].sum() < 5:
        pooled += 1
    observed = torch.cat([observed[:pooled].sum()[None], observed[pooled:]])
    expected = torch.cat([expected[:pooled].sum()[None], expected[pooled:]])
    statistic = ((observed - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    if freedom == 0:
        return 1.0
    return float(torch.special.gammaincc(torch.tensor(freedom / 2, dtype=torch.float64), statistic / 2))
