"""ReMDM: which decided tokens are masked again, by hand; the law of its chain is in tests/laws/test_remasking.py."""

from __future__ import annotations

import pytest
import torch

from dlmkit.generation import generate
from dlmkit.laws.denoisers import FixedLogits
from dlmkit.laws.remasking import steps_of
from dlmkit.laws.samplers import empty
from dlmkit.processes.absorbing import Absorbing
from dlmkit.samplers.remasking import Confidences
from dlmkit.samplers.remdm import ReMDM
from dlmkit.samplers.remdm_loop import ReMDMLoop
from dlmkit.schedules.cosine import Cosine
from dlmkit.schedules.linear import Linear

NOISE = Absorbing(Linear(), 3, 2)


@pytest.mark.parametrize("sampler", [ReMDM(rule="conf", eta=1.0), ReMDM(eta=0.3), ReMDM(rule="rescale", eta=0.3)])
def test_sigma_by_hand(sampler):
    """One row: a given token, two decided ones with probabilities 0.2 and 0.9, a mask."""
    fixed = torch.tensor([[True, False, False, False]])
    masked = torch.tensor([[False, False, False, True]])
    state = Confidences(torch.tensor([[torch.inf, 0.2, 0.9, torch.inf]], dtype=torch.float64))
    process = Absorbing(Cosine(), 3, 2)
    step = list(steps_of(sampler, fixed, 4))[1]
    alpha_s, alpha_t = float(process.alpha(step.s)), float(process.alpha(step.t))
    most = min(1.0, (1 - alpha_s) / alpha_t)
    sigma = sampler.rates(process, step, masked, state).remask[0]
    if sampler.rule == "conf":
        share = torch.tensor([-0.2, -0.9], dtype=torch.float64).softmax(-1)
        assert sigma.tolist() == pytest.approx([0.0, most * float(share[0]), most * float(share[1]), 0.0])
        assert sampler.reads_samples
        assert not sampler.faithful
    else:
        expected = min(0.3, most) if sampler.rule == "cap" else 0.3 * most
        assert sigma.tolist() == pytest.approx([expected] * 4)
        assert sampler.faithful


def test_confidences_are_those_of_the_drawn_tokens_and_go_with_them():
    sampler, canvas = ReMDM(rule="conf", eta=1.0), empty(NOISE, 50, 6)
    logits = torch.tensor([0.3, 0.7, 0.0]).log().expand(50, 6, 3)
    tokens, state = canvas.tokens, sampler.init(canvas)
    for step in steps_of(sampler, canvas.fixed, 5):
        done = sampler.step(FixedLogits(logits), NOISE, tokens, step, state)
        tokens, state = done.tokens, done.state
        expected = torch.tensor([0.3, 0.7, torch.inf], dtype=torch.float64)[tokens]
        torch.testing.assert_close(state.prob, expected, rtol=1e-6, atol=0)


def test_settings_of_a_loop_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"t_off 0.6 is not below t_on 0.55"):
        ReMDMLoop(t_off=0.6)
    with pytest.raises(ValueError, match=r"eta 0.2 is more than \(1 - alpha_on\) / alpha_on = 0.1111"):
        ReMDMLoop(eta=0.2)


def test_tokens_are_masked_again_as_often_as_eta_says():
    """Inside the loop: the share of decided free tokens that a step masks again, and as many masks are replaced."""
    sampler, canvas, again, decided, share = ReMDMLoop(eta=0.05), empty(NOISE, 2_000, 10), 0, 0, []

    def on_step(event):
        nonlocal again, decided
        if 0.06 < float(event.t[0]) <= 0.55:
            before, after = event.before != 2, event.after != 2
            again, decided = again + int((before & ~after).sum()), decided + int(before.sum())
            share.append(float(after.double().mean()))

    logits = torch.tensor([0.5, 0.5, 0.0]).log().expand(2_000, 10, 3)
    done = generate(FixedLogits(logits), NOISE, sampler, canvas, 40, 0, on_step)
    assert again / decided == pytest.approx(0.05, abs=5 * (0.05 * 0.95 / decided) ** 0.5)
    assert min(share[:-1]) == pytest.approx(0.9, abs=0.015)
    assert max(share[:-1]) == pytest.approx(0.9, abs=0.015)
    assert (done.tokens != 2).all()
