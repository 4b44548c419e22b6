"""The exact law of samplers that decide positions by a rule: where it is the data's, and by how much it is not."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from dlmkit.evaluation.duel import duel
from dlmkit.generation import generate
from dlmkit.laws.denoisers import Exact
from dlmkit.laws.findings import FALSE_ALARM
from dlmkit.laws.orders import ROUNDING, expected_excess, law_exact_order, law_likelihood, order_of
from dlmkit.laws.samplers import counts_of, empty, total_variation
from dlmkit.laws.source import index_of
from dlmkit.laws.statistics import chi_square_p
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.samplers.blockwise import Blockwise
from dlmkit.samplers.confidence import Confidence
from dlmkit.samplers.entropy_bound import EntropyBound
from dlmkit.samplers.factor import Factor
from dlmkit.samplers.semi_autoregressive import SemiAutoregressive
from dlmkit.samplers.threshold import Threshold
from dlmkit.types import NetworkInput
from laws.asserting import asserting
from laws.mutants.base import ABSORBING
from laws.parts import MASK_ID, VOCAB_SIZE
from laws.tables import LENGTH, source

SCORES = ("prob", "margin", "entropy", "random")


def exact(length: int = LENGTH) -> Exact:
    return Exact(source(length), ABSORBING, X0LeaveOneOut())


def data(length: int = LENGTH) -> Tensor:
    return source(length).joint.flatten()


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("sampler", "num_steps"),
    [
        *((Confidence(), 4), (Confidence(), 9), (Threshold(threshold=1.0), 1), (Factor(factor=0.0), 1)),
        *((EntropyBound(gamma=0.0), 1), (SemiAutoregressive(3, Confidence()), 6), (Blockwise(2, Confidence()), 4)),
    ],
    ids=str,
)
def test_one_decision_a_step_is_exact_whatever_the_score(sampler, num_steps, score):
    """Of 4 tokens, in blocks of 3 and 1 or of 2: to the rounding of float64."""
    sampler = sampler.with_settings(score=score)
    for seed in (0, 1):
        order = order_of(sampler, ABSORBING, exact(4), num_steps, 4, seed)
        assert order.most == 1
        assert total_variation(order.law, data(4)) <= ROUNDING


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    "sampler",
    [Confidence(), Threshold(threshold=0.6), Factor(factor=2.0), EntropyBound(gamma=0.8), Blockwise(2, Confidence())],
    ids=lambda sampler: sampler.name,
)
def test_laws_hold_for_every_score(sampler, score):
    sampler = sampler.with_settings(score=score)
    asserting(law_likelihood)(sampler, ABSORBING)
    asserting(law_exact_order)(sampler, ABSORBING)


def test_fewer_steps_cost_more():
    """Confidence with 4, 2 and 1 steps of 4 tokens: exact, and then further and further away."""
    distances = [
        total_variation(order_of(Confidence(), ABSORBING, exact(4), steps, 4, 0).law, data(4)) for steps in (4, 2, 1)
    ]
    assert distances[0] <= ROUNDING
    assert 0.05 < distances[1] < distances[2]


@pytest.mark.parametrize("gamma", [0.0, 0.2, 0.5, 1.0, 2.0, 5.0])
def test_the_entropy_bound_bounds_the_divergence(gamma):
    """KL(data, samples) <= expected excess <= steps * gamma; gamma = 0 is exact."""
    sampler, num = EntropyBound(gamma=gamma), 4
    law = order_of(sampler, ABSORBING, exact(num), num, num, 0).law
    apart = float((data(num) * (data(num) / law).log()).nan_to_num(0.0).sum())
    excess = expected_excess(sampler, ABSORBING, source(num), num, 0)
    assert -ROUNDING <= apart <= excess + ROUNDING
    assert excess <= num * gamma + 1e-6
    assert (apart <= ROUNDING) == (gamma <= 0.5)  # up to there one at a time


# Scores that read samples


def drawn_law() -> Tensor:
    """One position a step by the probability of a drawn token, by hand: all draws of all masks are enumerated."""
    now = {(MASK_ID,) * LENGTH: 1.0}
    for _ in range(LENGTH):
        after: dict[tuple[int, ...], float] = {}
        for state, weight in now.items():
            masks = [i for i in range(LENGTH) if state[i] == MASK_ID]
            inputs = NetworkInput(torch.tensor([state]), torch.tensor([0.5 if len(masks) < LENGTH else 1.0]).double())
            probs = exact()(inputs).logits(torch.ones(1, LENGTH, dtype=torch.bool)).exp()
            for draw in itertools.product(range(VOCAB_SIZE), repeat=len(masks)):
                of_draw = [float(probs[i, token]) for i, token in zip(masks, draw, strict=True)]
                chance = float(torch.tensor(of_draw, dtype=torch.float64).prod())
                best = max(range(len(masks)), key=lambda place: of_draw[place])
                to = tuple(draw[best] if i == masks[best] else state[i] for i in range(LENGTH))
                after[to] = after.get(to, 0.0) + weight * chance
        now = after
    law = torch.zeros(VOCAB_SIZE**LENGTH, dtype=torch.float64)
    for state, weight in now.items():
        law[index_of(torch.tensor([state]), VOCAB_SIZE)] = weight
    return law


def test_the_probability_of_a_drawn_token_is_a_biased_score():
    """LLaDA's rule with one decision a step: samples follow its law, which is far from the data's (exact numbers)."""
    sampler, law, num = Confidence(score="drawn"), drawn_law(), 10_000
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-12)
    assert 0.2 < total_variation(law, data()) < 0.4
    drawn = counts_of(generate(exact(), ABSORBING, sampler, empty(ABSORBING, num), LENGTH, 0).tokens, VOCAB_SIZE)
    assert chi_square_p(drawn, law * num) > FALSE_ALARM
    assert sampler.reads_samples
    assert not sampler.faithful
    with pytest.raises(ValueError, match="depends on drawn tokens"):
        duel(exact(), ABSORBING, sampler, source().sequences, LENGTH)


@pytest.mark.parametrize(
    ("settings", "keeps"), [({}, True), ({"token": "argmax"}, False), ({"temperature": 0.9}, False)], ids=str
)
def test_only_draws_from_the_networks_own_distribution_keep_the_datas(settings: dict[str, Any], keeps: bool):
    sampler = Confidence(**settings)
    assert (sampler.faithful, sampler.has_likelihood, sampler.reads_samples) == (keeps, keeps, False)
