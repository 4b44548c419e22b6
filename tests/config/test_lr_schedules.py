from __future__ import annotations

import pytest

from dlmkit.training.lr_schedules.constant import WarmupConstant
from dlmkit.training.lr_schedules.cosine import WarmupCosine


def test_cosine():
    schedule = WarmupCosine(num_steps=100, warmup_steps=10, final=0.1)
    factors = [schedule(step) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == pytest.approx(1.0)
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[55] == pytest.approx(0.55)  # half way between peak and end
    assert factors[100] == schedule(1000) == pytest.approx(0.1)


def test_constant():
    schedule = WarmupConstant(num_steps=100, warmup_steps=4)
    assert [schedule(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert WarmupConstant(num_steps=100, warmup_steps=0)(0) == 1.0
    assert WarmupCosine(num_steps=5, warmup_steps=5, final=0.0)(4) == 1.0


@pytest.mark.parametrize("warmup_steps", [-1, 6])
def test_warm_up_fits_the_run(warmup_steps):
    with pytest.raises(ValueError, match=r"raise budget\.tokens|use 0 for none"):
        WarmupCosine(num_steps=5, warmup_steps=warmup_steps, final=0.1)


@pytest.mark.parametrize("final", [-0.1, 1.1])
def test_final_is_a_factor(final):
    with pytest.raises(ValueError, match="outside"):
        WarmupCosine(num_steps=5, warmup_steps=1, final=final)
