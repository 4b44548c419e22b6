"""The closed forms' gradients, written out by hand, are those of automatic differentiation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlmkit.objectives.equal_mass import EqualMassDivergence
from dlmkit.objectives.score_entropy import MaskScores, TokenScores
from dlmkit.types import ClosedForm

V, MASK, NUM = 11, 4, 60


def rows(mask_id: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Logits float64 [n, V], x_0 and z int64 [n]; a third of the tokens are clean, and z may be the mask."""
    generator = torch.Generator().manual_seed(0)
    logits = 4.0 * torch.randn(NUM, V, generator=generator, dtype=torch.float64)
    z = torch.randint(V, (NUM,), generator=generator)
    x_0 = torch.randint(V - 1, (NUM,), generator=generator)
    if mask_id is not None:
        logits[:, mask_id] = float("-inf")
        x_0 += x_0 >= mask_id
    z[::3] = x_0[::3]
    return logits, x_0, z


def agree(form: ClosedForm, logits: Tensor, *arguments: Tensor) -> None:
    """Values and gradients are those of autograd to 1e-10 of the largest in the row."""
    recorded = logits.clone().requires_grad_(True)
    values = form(recorded, *arguments)
    (expected,) = torch.autograd.grad(values.sum(), recorded)
    gradient = logits.clone()
    torch.testing.assert_close(form.to_gradient_(gradient, *arguments), values.detach(), rtol=1e-10, atol=1e-12)
    scale = expected.abs().amax(-1, keepdim=True).clamp_min(1e-300)
    torch.testing.assert_close(gradient / scale, expected / scale, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("mask_id", [None, MASK])
@pytest.mark.parametrize(("alpha", "mass"), [(0.5, 0.05), (0.999, 1e-4), (0.3, 1e-12), (0.5, 1e-38), (0.02, 0.09)])
def test_equal_mass_divergence(mask_id, alpha, mass):
    logits, x_0, z = rows(mask_id)
    per_row = 0.5 + torch.linspace(0.0, 0.5, NUM, dtype=torch.float64)
    agree(EqualMassDivergence(), logits, x_0, z, alpha * per_row, mass * per_row)


def test_scores_at_masks():
    logits, x_0, _ = rows(MASK)
    agree(MaskScores(V - 1), logits, x_0)


@pytest.mark.parametrize("mask_id", [None, MASK])
@pytest.mark.parametrize("log_ratio", [0.0, 0.1, 3.0, 15.0])
def test_scores_at_tokens(mask_id, log_ratio):
    logits, x_0, z = rows(mask_id)
    agree(TokenScores(mask_id), logits, x_0, z, torch.full((NUM,), log_ratio, dtype=torch.float64))


@pytest.mark.parametrize("alpha", [1e-4, 0.5, 0.999])
def test_equal_mass_divergence_in_float32(alpha):
    """Near t = 1 the terms are of order alpha and the value of order alpha^2: float32 keeps its digits."""
    logits, x_0, z = rows(MASK)
    per_row = torch.full((NUM,), alpha, dtype=torch.float64)
    arguments = (x_0, z, per_row, (1.0 - per_row) / (V - 1))
    low, high = logits.float(), logits.float().double()
    values, expected = (EqualMassDivergence().to_gradient_(each, *arguments) for each in (low, high))
    scale = alpha**2 if alpha < 0.1 else 1.0
    torch.testing.assert_close(values.double() / scale, expected / scale, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(low.double() / alpha, high / alpha, rtol=1e-4, atol=1e-5)
