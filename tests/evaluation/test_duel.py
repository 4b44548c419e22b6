"""DUEL: the exact likelihood of a sampler, against enumeration and the networks' own likelihoods."""

from __future__ import annotations

import pytest
import torch

from dlmkit.backbones.dit import DiT
from dlmkit.evaluation.duel import duel
from dlmkit.generation import generate
from dlmkit.laws.denoisers import Exact, ExactNext
from dlmkit.laws.findings import FALSE_ALARM
from dlmkit.laws.samplers import counts_of
from dlmkit.laws.source import all_sequences, index_of
from dlmkit.laws.statistics import chi_square_p
from dlmkit.objectives.block import BlockElbo
from dlmkit.objectives.masked import MaskedElbo
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.randomness import row_noise
from dlmkit.samplers.ancestral import Ancestral
from dlmkit.samplers.autoregressive import Autoregressive
from dlmkit.samplers.blockwise import Blockwise
from dlmkit.samplers.confidence import Confidence
from dlmkit.samplers.entropy_bound import EntropyBound
from dlmkit.samplers.factor import Factor
from dlmkit.samplers.first_hitting import FirstHitting
from dlmkit.samplers.p2 import P2
from dlmkit.samplers.remdm import ReMDM
from dlmkit.samplers.semi_autoregressive import SemiAutoregressive
from dlmkit.samplers.threshold import Threshold
from dlmkit.step import losses
from dlmkit.types import Canvas, NetworkInput, Noised
from laws import parts
from laws.mutants.base import ABSORBING
from laws.parts import MASK_ID, VOCAB_SIZE
from laws.tables import source
from networks import randomised


def texts(length: int, vocab_size: int = VOCAB_SIZE) -> torch.Tensor:
    every = all_sequences(length, vocab_size)
    return every[(every != MASK_ID).all(-1)]


def network() -> DiT:
    torch.manual_seed(0)
    backbone = DiT(VOCAB_SIZE, MASK_ID, 16, 16, 2, 2, 8)
    torch.manual_seed(1)
    return randomised(backbone).eval()


def exact(length: int) -> Exact:
    return Exact(source(length), ABSORBING, X0LeaveOneOut())


RULES = [
    *(Confidence(), Confidence(score="margin"), Threshold(threshold=0.5), Factor(factor=1.5), EntropyBound(gamma=0.9)),
    *(FirstHitting(), SemiAutoregressive(2, Confidence()), Blockwise(2, Threshold(threshold=0.5))),
]


@pytest.mark.parametrize("sampler", RULES, ids=str)
def test_likelihoods_of_a_network_sum_to_one(sampler):
    """Any network, any number of positions a step, to the rounding of its float32 logits."""
    every, backbone = texts(4), network()
    noise = row_noise(torch.zeros(len(every), dtype=torch.int64), 0)
    for num_steps in (4, 2, 1):
        scored = duel(backbone, ABSORBING, sampler, every, num_steps, noise=noise)
        assert float((-scored.nll).exp().sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_one_by_one_it_is_the_datas_own_likelihood(k):
    """With the exact predictor; k at a time it is on average worse by the divergence of the samples."""
    data, sampler = source(3), Confidence()
    scored = duel(exact(3), ABSORBING, sampler, data.sequences, -(-3 // k))
    if k == 1:
        torch.testing.assert_close(scored.nll, -data.probs.log(), rtol=0, atol=1e-12)
    mean = float((data.probs * scored.nll).sum())
    assert (mean - data.entropy == pytest.approx(0.0, abs=1e-12)) == (k == 1)
    assert mean >= data.entropy - 1e-12
    assert scored.passes.tolist() == [-(-3 // k)] * len(data.sequences)


def test_samples_have_the_likelihood():
    """A network's samples, three positions in two steps, behind a token that tells them apart: chi-square."""
    backbone, num, every = network(), 20_000, texts(4)
    every = every[every[:, 0] == 2]
    given = torch.tensor([True, False, False, False])
    probs = torch.zeros(VOCAB_SIZE**4, dtype=torch.float64)
    nll = duel(backbone, ABSORBING, Confidence(), every, 2, given.expand_as(every)).nll
    probs[index_of(every, VOCAB_SIZE)] = (-nll).exp()
    canvas = Canvas(torch.full((num, 4), 2), given.expand(num, -1))
    drawn = generate(backbone, ABSORBING, Confidence(), canvas, 2, 1).tokens
    assert float(probs.sum()) == pytest.approx(1.0, abs=1e-5)
    assert chi_square_p(counts_of(drawn, VOCAB_SIZE), probs / probs.sum() * num) > FALSE_ALARM


def test_left_to_right_it_is_the_autoregressive_likelihood():
    """The exact causal network; and blocks of one token of a network, whose objective has the likelihood exactly."""
    data = source(3)
    scored = duel(ExactNext(data), parts.process("none"), Autoregressive(), data.sequences, 1)
    torch.testing.assert_close(scored.nll, -data.probs.log(), rtol=0, atol=1e-12)

    every, backbone = texts(3), network()
    t = torch.ones(len(every), 3, dtype=torch.float64)
    noised = Noised(every, torch.full_like(every, MASK_ID), t, torch.ones_like(every, dtype=torch.bool), t)
    with torch.no_grad():
        expected = losses(BlockElbo(1, MaskedElbo()), ABSORBING, backbone, noised).nll
    scored = duel(backbone, ABSORBING, Blockwise(1, Confidence()), every, 3)
    torch.testing.assert_close(-scored.log_prob, expected.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sampler", [Confidence(), Threshold(threshold=0.5), Blockwise(2, Confidence())], ids=str)
def test_given_tokens_are_conditioned_on(sampler):
    """Prompts of unequal length: log p(rest | prompt), 0 at the prompt, as each row has it alone."""
    backbone, every = network(), texts(4)[::7]
    given = torch.arange(4) < (torch.arange(len(every)) % 5)[:, None]
    noise = row_noise(torch.arange(len(every)), 0)
    scored = duel(backbone, ABSORBING, sampler, every, 4, given, noise)
    assert (scored.log_prob[given] == 0).all()
    assert (scored.log_prob[~given] < 0).all()
    assert (scored.passes <= (~given).sum(-1)).all()
    for row in torch.arange(len(every)).split(1):
        alone = duel(backbone, ABSORBING, sampler, every[row], 4, given[row], noise.select(row))
        torch.testing.assert_close(alone.log_prob, scored.log_prob[row], rtol=1e-5, atol=1e-6)
        assert torch.equal(alone.passes, scored.passes[row])


def test_the_conditional_likelihood_is_the_exact_one():
    data = source(3)
    given = torch.tensor([False, True, False]).expand(len(data.sequences), -1)
    scored = duel(exact(3), ABSORBING, Confidence(), data.sequences, 2, given)
    of_given = data.joint.sum((0, 2))[data.sequences[:, 1]]
    torch.testing.assert_close(scored.nll, -(data.probs / of_given).log(), rtol=0, atol=1e-12)


def test_by_hand():
    """Two tokens, one step: log p_0 + log p_1, both given the masks."""
    backbone, text = network(), torch.tensor([[0, 3]])
    with torch.no_grad():
        t = torch.ones(1, dtype=torch.float64)
        logits = backbone(NetworkInput(torch.full((1, 2), MASK_ID), t)).logits(torch.ones(1, 2, dtype=torch.bool))
    expected = logits.log_softmax(-1)[torch.arange(2), text[0]].double()
    scored = duel(backbone, ABSORBING, Confidence(), text, 1)
    torch.testing.assert_close(scored.log_prob[0], expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scored.nll, -expected.sum()[None], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (
            Confidence(score="drawn"),
            "sampler=confidence has no likelihood: which positions it decides depends on drawn",
        ),
        (P2(), "sampler=p2 has no likelihood: which positions it decides depends on drawn tokens"),
        (Confidence(temperature=0.7), "sampler=confidence has no likelihood: its tokens are not drawn once each from"),
        (Threshold(token="argmax"), "sampler=threshold has no likelihood: its tokens are not drawn once each"),
        (Blockwise(2, Confidence(top_p=0.9)), "sampler=blockwise has no likelihood"),
        (ReMDM(), "sampler=remdm has no likelihood: its tokens are not drawn once each"),
        (Ancestral(), "sampler=ancestral has no likelihood"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_samplers_without_a_known_likelihood_are_refused(sampler, message):
    with pytest.raises(ValueError, match=message) as refused:
        duel(exact(3), ABSORBING, sampler, texts(3), 3)
    assert "\n" not in str(refused.value)


def test_masks_among_the_tokens_to_score_are_refused():
    with pytest.raises(ValueError, match="masks among the tokens to score"):
        duel(exact(3), ABSORBING, Confidence(), torch.tensor([[0, MASK_ID, 2]]), 3)
