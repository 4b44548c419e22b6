"""Boundary terms: without them a schedule that does not reach pure noise, or clean data, has too low a bound."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlmkit.laws import boundary_terms as laws
from dlmkit.laws.objectives import exact_predictor, integrals, prior_kl, toy_source
from dlmkit.objectives.base import Objective
from dlmkit.objectives.elbo import GenericElbo
from dlmkit.objectives.masked import MaskedElbo
from dlmkit.objectives.score_entropy import ScoreEntropy
from dlmkit.objectives.uniform import UniformElbo
from dlmkit.processes.absorbing import Absorbing
from dlmkit.processes.base import ForwardProcess
from dlmkit.processes.uniform import Uniform
from dlmkit.schedules.base import Schedule
from laws import parts
from laws.asserting import asserting
from laws.parts import MASK_ID, VOCAB_SIZE

law_boundary_terms = asserting(laws.law_boundary_terms)


class Short(Schedule):
    """alpha from `top` to `bottom`: neither clean at t = 0 nor noise at t = 1."""

    def __init__(self, top: float, bottom: float) -> None:
        self.top, self.bottom = top, bottom

    def alpha(self, t: Tensor) -> Tensor:
        return self.top + (self.bottom - self.top) * t

    def derivative(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.bottom - self.top)


PAIRS = [(MaskedElbo(), Absorbing), (UniformElbo(), Uniform), (GenericElbo(), Absorbing), (GenericElbo(), Uniform)]
PAIRS += [(ScoreEntropy(), Absorbing), (ScoreEntropy(), Uniform)]
EACH = pytest.mark.parametrize(
    ("objective", "noise"), PAIRS, ids=lambda one: getattr(one, "__name__", type(one).__name__)
)


@pytest.mark.parametrize(("name", "process", "schedule"), parts.params(parts.diffusion_triples()))
def test_parts(name: str, process: str, schedule: str) -> None:
    law_boundary_terms(parts.objective(name), parts.process(process, schedule))


@EACH
@pytest.mark.parametrize(("top", "bottom"), [(1.0, 0.2), (0.9, 0.0), (0.8, 0.1)])
def test_bound_with_its_boundary_terms(objective: Objective, noise: type, top: float, bottom: float) -> None:
    law_boundary_terms(objective, noise(Short(top, bottom), VOCAB_SIZE, MASK_ID))


@EACH
def test_without_them_the_integral_is_below_the_entropy(objective: Objective, noise: type) -> None:
    process: ForwardProcess = noise(Short(0.9, 0.2), VOCAB_SIZE, MASK_ID)
    source = toy_source(process)
    integral = integrals(objective, process, source, exact_predictor(objective, process, source))
    assert float((source.probs * integral).sum()) < 0.9 * source.entropy


@pytest.mark.parametrize("noise", [Absorbing, Uniform])
def test_prior_term_is_at_least_the_least_divergence(noise: type) -> None:
    """KL(q(x_1 | x) || p(x_1)) is smallest, on average over x, for the true marginal p(x_1)."""
    process = noise(Short(1.0, 0.2), VOCAB_SIZE, MASK_ID)
    objective = MaskedElbo() if noise is Absorbing else UniformElbo()
    source = toy_source(process)
    term, least = laws.prior_term(objective, process, source), prior_kl(source, process)
    assert float((source.probs * (term - least)).sum()) > 0.001
    assert (term > 0).all()
