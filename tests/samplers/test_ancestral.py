"""Ancestral sampling: the argmax at temperature 0, and draws whose tail does not depend on the step size."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dlmkit.generation import generate
from dlmkit.laws.denoisers import FixedLogits
from dlmkit.laws.findings import FALSE_ALARM
from dlmkit.laws.predictions import TablePrediction
from dlmkit.laws.samplers import Exact, empty
from dlmkit.laws.statistics import chi_square_p
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.randomness import row_noise
from dlmkit.samplers import ancestral
from dlmkit.samplers.ancestral import Ancestral
from dlmkit.samplers.base import Step
from dlmkit.tensors import categorical
from dlmkit.types import Canvas
from laws import parts
from laws.parts import MASK_ID, VOCAB_SIZE
from laws.tables import source


def test_temperature_zero_fills_in_the_most_likely_tokens():
    """One position at a time the result is known: the argmax of each conditional."""
    data, noise = source(), parts.process("absorbing")
    tokens = torch.tensor([[2, MASK_ID, 3]])
    canvas = Canvas(tokens, tokens != MASK_ID)
    sampler = parts.sampler("ancestral", temperature=0.0)
    done = generate(Exact(data, noise, X0LeaveOneOut()), noise, sampler, canvas, 4, 0)
    assert int(done.tokens[0, 1]) == int(data.joint[2, :, 3].argmax())


def test_which_token_is_drawn_apart_from_whether_it_changes(monkeypatch: pytest.MonkeyPatch):
    """A token's share is never multiplied by the step size before the draw: with dt = 1e-6 the tail would be lost."""
    handed = []

    def spy(probs: Tensor, uniform: Tensor) -> Tensor:
        handed.append(probs)
        return categorical(probs, uniform)

    monkeypatch.setattr(ancestral, "categorical", spy)
    noise = parts.process("absorbing")
    table = torch.tensor([0.9, 0.0, 0.1 - 1e-7, 1e-7], dtype=torch.float64).log().expand(1_000_000, 1, VOCAB_SIZE)
    x_t = torch.full((1_000_000, 1), MASK_ID)
    t = torch.full((1_000_000,), 0.5, dtype=torch.float64)
    nothing = torch.zeros_like(x_t, dtype=torch.bool)
    parts.sampler("ancestral").step(
        lambda inputs: TablePrediction(table[: len(inputs.x_t)]),
        noise,
        x_t,
        Step(0, 1, t, t - 1e-5, nothing, nothing, row_noise(torch.arange(len(x_t)), 0)),
        None,
    )
    (probs,) = handed
    assert 0 < len(probs) < 100  # 20 expected
    given_change = probs / probs.sum(-1, keepdim=True)
    torch.testing.assert_close(given_change, table[0].exp().expand(len(probs), -1), rtol=1e-9, atol=0)


class Squared(X0LeaveOneOut):
    """A network whose output is half of log x_theta."""

    def log_x0(self, logits, x_t, t, process):
        return super().log_x0(2 * logits, x_t, t, process)


@dataclass(frozen=True)
class OfSquared(Ancestral):
    parameterization = Squared()


def test_the_parameterization_holds_under_absorbing_noise_too():
    """Probabilities 0.5, 0.3, 0.2 of the raw output are 25, 9, 4 of 38."""
    noise, num = parts.process("absorbing"), 5_000
    probs = torch.zeros(VOCAB_SIZE)
    probs[[0, 2, 3]] = torch.tensor([0.5, 0.3, 0.2])
    drawn = generate(FixedLogits(probs.log().expand(num, 1, -1)), noise, OfSquared(), empty(noise, num, 1), 3, 0).tokens
    expected = (probs**2 / (probs**2).sum()).double() * num
    assert chi_square_p(torch.bincount(drawn[:, 0], minlength=VOCAB_SIZE), expected) > FALSE_ALARM


def test_no_step_is_refused():
    noise = parts.process("absorbing")
    with pytest.raises(ValueError, match="num_steps 0"):
        generate(
            Exact(source(), noise, X0LeaveOneOut()),
            noise,
            parts.sampler("ancestral"),
            empty(noise, 1),
            0,
            0,
        )
