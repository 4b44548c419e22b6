"""The NELBO of a sequence: the integral over t, and the boundary terms of schedules that leave them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlmkit.backbones.dit import DiT
from dlmkit.evaluation.nelbo import SequenceScores, score_sequences
from dlmkit.evaluation.time_grid import noised_grid
from dlmkit.objectives.base import Objective
from dlmkit.objectives.block import BlockElbo
from dlmkit.objectives.discrete import DiscreteTimeElbo
from dlmkit.objectives.masked import MaskedElbo
from dlmkit.objectives.score_entropy import ScoreEntropy
from dlmkit.objectives.uniform import UniformElbo
from dlmkit.processes.absorbing import Absorbing
from dlmkit.processes.base import ForwardProcess
from dlmkit.processes.uniform import Uniform
from dlmkit.schedules.linear import Linear
from dlmkit.schedules.log_linear import LogLinear
from dlmkit.types import Batch, Context, NetworkInput

V, MASK, LENGTH, EPS = 7, 6, 8, 0.1


@pytest.fixture
def network() -> DiT:
    """A tiny network whose every weight matters."""
    torch.manual_seed(0)
    backbone = DiT(V, MASK, LENGTH, 16, 2, 2, 8)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return backbone.eval()


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    scored = torch.rand(5, LENGTH, generator=generator) < 0.8
    return Batch(torch.randint(MASK, (5, LENGTH), generator=generator), scored)


@torch.no_grad()
def scores(objective: Objective, process: ForwardProcess, network: DiT, rows: slice = slice(None)) -> SequenceScores:
    sequences = batch()
    some = Batch(sequences.tokens[rows], sequences.scored[rows])
    return score_sequences(objective, process, network, some, torch.arange(5)[rows], num_times=3)


def surprisal_of_all_masked(network: DiT, context: bool) -> Tensor:
    """-log p(x_0 | all scored tokens masked), [B, L], zero where not scored; each block of 4 given those before it."""
    sequences = batch()
    masked = sequences.tokens.masked_fill(sequences.scored, MASK)
    with torch.no_grad():
        blocks = Context(sequences.tokens, 4) if context else None
        prediction = network(NetworkInput(masked, torch.ones(5, dtype=torch.float64), context=blocks))
        log_p = prediction.token_log_prob(sequences.tokens, torch.ones_like(sequences.scored)).view(5, LENGTH)
    return -log_p.double() * sequences.scored


@pytest.mark.parametrize(
    "objective", [MaskedElbo(), DiscreteTimeElbo(4), BlockElbo(4, MaskedElbo())], ids=lambda one: one.name
)
def test_prior_of_absorbing_noise(objective: Objective, network: DiT) -> None:
    """alpha(1) of the tokens are clean at t = 1: each costs its surprisal when all are masked."""
    found = scores(objective, Absorbing(LogLinear(EPS), V, MASK), network)
    expected = EPS * surprisal_of_all_masked(network, isinstance(objective, BlockElbo)).sum(-1)
    torch.testing.assert_close(found.prior, expected, rtol=1e-5, atol=0)
    assert float(found.reconstruction.abs().max()) == 0.0


def test_prior_of_scores_is_that_of_the_normalised_scores(network: DiT) -> None:
    """Scores s(y) normalise to p(y) = s(y) / (1 + sum of s): a mask with 1 / (1 + sum), against 1 - alpha(1)."""
    found = scores(ScoreEntropy(), Absorbing(LogLinear(EPS), V, MASK), network)
    sequences = batch()
    masked = sequences.tokens.masked_fill(sequences.scored, MASK)
    with torch.no_grad():
        prediction = network(NetworkInput(masked, torch.ones(5, dtype=torch.float64)))
        logits = prediction.logits(torch.ones_like(sequences.scored)).double()
    s = logits.exp() * EPS / (1 - EPS) / (V - 1)  # its scaling
    own = s.gather(-1, sequences.tokens.reshape(-1, 1))[:, 0]
    cost = EPS * (EPS * (1 + s.sum(-1)) / own).log() + (1 - EPS) * ((1 - EPS) * (1 + s.sum(-1))).log()
    torch.testing.assert_close(found.prior, (cost.view(5, LENGTH) * sequences.scored).sum(-1), rtol=1e-5, atol=0)


def test_prior_of_uniform_noise(network: DiT) -> None:
    """KL of a token that stays with probability alpha(1) from a uniform one, by hand; no network in it."""
    found = scores(UniformElbo(), Uniform(LogLinear(EPS), V, MASK), network)
    own, other = EPS + (1 - EPS) / (V - 1), (1 - EPS) / (V - 1)
    one = torch.tensor([own, *[other] * (V - 2)], dtype=torch.float64)
    each = float((one * (one * (V - 1)).log()).sum())
    torch.testing.assert_close(found.prior, each * batch().scored.sum(-1).double(), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("objective", "process"),
    [
        (MaskedElbo(), Absorbing(Linear(), V, MASK)),
        (UniformElbo(), Uniform(Linear(), V, MASK)),
    ],
)
def test_no_boundary_term_where_alpha_runs_from_one_to_zero(
    objective: Objective, process: ForwardProcess, network: DiT
) -> None:
    found = scores(objective, process, network)
    assert float(found.prior.abs().max()) == float(found.reconstruction.abs().max()) == 0.0


@pytest.mark.parametrize("noise", [Absorbing, Uniform])
def test_nll_contains_the_boundary_terms_and_does_not_depend_on_the_batch(noise: type, network: DiT) -> None:
    objective = MaskedElbo() if noise is Absorbing else UniformElbo()
    whole = scores(objective, noise(LogLinear(EPS), V, MASK), network)
    sequences, process = batch(), noise(LogLinear(EPS), V, MASK)
    integral = torch.zeros(5, dtype=torch.float64)
    with torch.no_grad():
        for noised in noised_grid(process, sequences, torch.arange(5), 3):
            prediction = network(NetworkInput(noised.x_t, noised.t))
            integral += objective(prediction, noised, process).nll.double().sum(-1)
    torch.testing.assert_close(whole.nll, integral / 3 + whole.prior, rtol=1e-6, atol=0)
    for rows in (slice(0, 2), slice(2, 5)):
        part = scores(objective, noise(LogLinear(EPS), V, MASK), network, rows)
        torch.testing.assert_close(part.nll, whole.nll[rows], rtol=1e-5, atol=0)
        torch.testing.assert_close(part.prior, whole.prior[rows], rtol=1e-5, atol=0)
