"""Processes: every method agrees with alpha_t 1[z = x] + mass_t(z), by brute force on a small vocabulary."""

from __future__ import annotations

import pytest
import torch

from dlmkit.laws import processes as laws
from dlmkit.laws.processes import TIMES
from dlmkit.processes.base import ForwardProcess
from dlmkit.randomness import generator_for
from laws import parts
from laws.asserting import asserting
from laws.parts import MASK_ID, VOCAB_SIZE

TOKENS = [i for i in range(VOCAB_SIZE) if i != MASK_ID]


def cases() -> list:
    """Every process x schedule, with the mask token, and without it where the process allows that."""
    found = []
    for name, schedule in parts.with_schedules("process"):
        for mask_id in (MASK_ID, None):
            try:
                process = parts.process(name, schedule, mask_id=mask_id)
            except ValueError:  # the process needs a mask token
                continue
            mask = "" if mask_id is not None else "-no_mask"
            found.append(pytest.param(process, id=f"{name}-{schedule}{mask}"))
    return found


CASES = cases()
LAWS = [asserting(law) for law in laws.LAWS]
"""For a process to which all of them apply."""
APPLYING = [
    pytest.param(law, process, id=f"{law.name}-{case.id}")
    for case in CASES
    for process in case.values
    for law in laws.LAWS
    if law.why_not(process) is None
]


@pytest.mark.parametrize(("law", "process"), APPLYING)
def test_process(law, process):
    asserting(law)(process)


def test_no_noise_changes_nothing():
    process = parts.process("none")
    x_0 = torch.arange(12).reshape(3, 4) % VOCAB_SIZE
    scored = torch.ones_like(x_0, dtype=torch.bool)
    t = torch.linspace(0, 1, 3, dtype=torch.float64)
    assert torch.equal(process.corrupt(x_0, t, scored, generator_for("cpu", 0)), x_0)


@pytest.mark.parametrize(("p_uniform", "gamma"), [(0.0, 1.0), (0.05, 2.0), (0.9, 0.5), (0.5, 1.5)])
def test_hybrid_keeps_the_laws_at_any_share(p_uniform, gamma):
    for law in LAWS:
        law(parts.process("hybrid", p_uniform=p_uniform, gamma=gamma))


def test_hybrid_share_of_uniform_noise_is_largest_in_the_middle():
    noise = parts.process("hybrid", p_uniform=0.3, gamma=1.0)
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    share = noise.coefficients(t)[1][:, TOKENS].sum(-1)
    assert float(share[500]) == pytest.approx(0.3, rel=1e-12)
    assert int(share.argmax()) == 500


def test_hybrid_without_uniform_noise_is_absorbing():
    hybrid, absorbing = parts.process("hybrid", p_uniform=0.0), parts.process("absorbing", "linear")
    for mine, other in zip(hybrid.coefficients(TIMES), absorbing.coefficients(TIMES), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-15)
    tokens = torch.arange(VOCAB_SIZE)
    assert torch.equal(hybrid.may_change(tokens), absorbing.may_change(tokens))


def test_hybrid_rate_is_the_derivative_and_finite_at_the_ends():
    noise = parts.process("hybrid")
    t = torch.tensor([1e-12, 1e-6, 0.3, 1 - 1e-6], dtype=torch.float64)
    torch.testing.assert_close(noise.rate(t), ForwardProcess.rate(noise, t), rtol=1e-6, atol=0)
    ends = torch.tensor([0.0, 1e-300, 1 - 1e-16, 1.0], dtype=torch.float64)
    assert torch.isfinite(noise.rate(ends)).all()
    assert (noise.rate(ends) >= 0).all()


@pytest.mark.parametrize("changes", [{"p_uniform": 1.0}, {"p_uniform": -0.1}, {"gamma": 0.0}, {"gamma": 2.5}])
def test_hybrid_refuses_what_is_no_chain(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        parts.process("hybrid", **changes)


@pytest.mark.parametrize("process", CASES)
def test_noise_is_a_function_of_the_generator_alone(process):
    x_0 = torch.tensor(TOKENS)[torch.arange(400).reshape(20, 20) % len(TOKENS)]
    t = torch.linspace(0, 1, 20, dtype=torch.float64)
    scored = torch.ones_like(x_0, dtype=torch.bool)
    torch.manual_seed(0)
    first = process.corrupt(x_0, t, scored, generator_for("cpu", 5))
    torch.manual_seed(1)
    assert torch.equal(process.corrupt(x_0, t, scored, generator_for("cpu", 5)), first)
    assert not process.has_noise or not torch.equal(process.corrupt(x_0, t, scored, generator_for("cpu", 6)), first)
