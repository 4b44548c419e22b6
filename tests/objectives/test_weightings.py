"""Weightings of the training loss: they change the loss, never the nll; and where the head runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlmkit.laws.objectives import a_batch
from dlmkit.laws.predictions import TablePrediction
from dlmkit.objectives.hybrid import HybridElbo
from dlmkit.objectives.masked import MaskedElbo
from laws import parts
from laws.parts import MASK_ID


def test_weightings_change_the_loss_and_not_the_nll():
    noise = parts.process("absorbing", "linear")
    noised, logits = a_batch(noise)
    bound = MaskedElbo("bound")(TablePrediction(logits), noised, noise)
    constant = MaskedElbo("constant")(TablePrediction(logits), noised, noise)
    clipped = MaskedElbo("clipped", 3.0)(TablePrediction(logits), noised, noise)
    for other in (constant, clipped):
        assert torch.equal(other.nll, bound.nll)
        assert not torch.equal(other.loss, bound.loss)
    surprisal = bound.nll / (noised.weight / noised.t)[:, None]
    torch.testing.assert_close(constant.loss, surprisal * noised.weight[:, None])
    torch.testing.assert_close(clipped.loss, surprisal * ((1 / noised.t).clamp_max(3.0) * noised.weight)[:, None])


def test_clipping_hybrid_weights_changes_the_loss_and_not_the_nll():
    noise = parts.process("hybrid")
    noised, logits = a_batch(noise)
    bound = HybridElbo("bound")(TablePrediction(logits), noised, noise)
    clipped = HybridElbo("clipped", 3.0)(TablePrediction(logits), noised, noise)
    assert torch.equal(clipped.nll, bound.nll)
    torch.testing.assert_close(bound.loss, bound.nll)
    at_mask = (noised.x_t == MASK_ID) & noised.scored
    weight = (1 / (noised.t * (1 - noised.t)))[:, None].expand(at_mask.shape)[at_mask]
    torch.testing.assert_close(clipped.loss[at_mask], bound.nll[at_mask] * (3.0 / weight).clamp_max(1.0))
    assert (clipped.loss <= bound.loss + 1e-12).all()


@pytest.mark.parametrize("arguments", [("dynamic", None), ("clipped", None), ("bound", 1.0), ("clipped", -1.0)])
@pytest.mark.parametrize("objective", [MaskedElbo, HybridElbo])
def test_a_weighting_that_does_not_fit_is_refused(objective, arguments):
    with pytest.raises(ValueError, match="weight"):
        objective(*arguments)


def test_masked_runs_the_head_at_masked_positions_only():
    noise = parts.process("absorbing")
    noised, logits = a_batch(noise)
    selected = []

    class Spy(TablePrediction):
        def token_log_prob(self, tokens: Tensor, where: Tensor) -> Tensor:
            selected.append(where)
            return super().token_log_prob(tokens, where)

    parts.objective("masked")(Spy(logits), noised, noise)
    assert len(selected) == 1
    assert torch.equal(selected[0], (noised.x_t == MASK_ID) & noised.scored)
