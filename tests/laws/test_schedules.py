"""Schedules: alpha falls from 1 to about 0, and what is derived from it agrees with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlmkit.schedules.base import Schedule
from dlmkit.schedules.linear import Linear
from dlmkit.schedules.log_linear import LogLinear
from laws import parts

SCHEDULES = parts.names("schedule")


def float64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def grid(num: int = 20_001) -> Tensor:
    return torch.linspace(0.0, 1.0, num, dtype=torch.float64)


def law_ends(schedule: Schedule) -> None:
    start, end = schedule.alpha(float64(0.0, 1.0)).tolist()
    assert abs(start - 1.0) <= 1e-9, f"alpha(0) is {start}, not 1: data at t = 0 would be noisy"
    assert 0.0 <= end <= 2e-3, f"alpha(1) is {end}, not within [0, 2e-3]: data would be left at t = 1"


def law_falls(schedule: Schedule) -> None:
    alpha = schedule.alpha(grid())
    assert ((alpha >= 0) & (alpha <= 1)).all(), "alpha leaves [0, 1]"
    assert (alpha.diff() <= 0).all(), "alpha grows somewhere"


def law_shape(schedule: Schedule) -> None:
    for dtype in (torch.float32, torch.float64):
        t = torch.rand(3, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
        for value in (schedule.alpha(t), schedule.derivative(t), schedule.inverse(t)):
            assert (value.shape, value.dtype) == (t.shape, dtype)
            assert not value.requires_grad


def law_derivative(schedule: Schedule) -> None:
    t = grid()[1:-1]
    torch.testing.assert_close(schedule.derivative(t), Schedule.derivative(schedule, t), rtol=1e-8, atol=0)
    with torch.no_grad():  # validation asks for it without gradients
        torch.testing.assert_close(schedule.derivative(t), Schedule.derivative(schedule, t), rtol=1e-8, atol=0)


def law_derivative_is_the_slope(schedule: Schedule) -> None:
    # Autograd and a closed form could share a slip; a difference quotient shares nothing.
    t = grid(101)[1:-1]
    step = 1e-5
    slope = (schedule.alpha(t + step) - schedule.alpha(t - step)) / (2 * step)
    torch.testing.assert_close(schedule.derivative(t), slope, rtol=1e-5, atol=1e-7)


def law_inverse(schedule: Schedule) -> None:
    t = grid(1_001)[1:-1]
    alpha = schedule.alpha(t)
    back = schedule.inverse(alpha)
    # alpha carries a rounding error of 1e-16, which the inverse stretches by 1 / |alpha'|.
    slack = 1e-12 + 4e-16 / schedule.derivative(t).abs()
    assert ((back - t).abs() <= slack).all()
    torch.testing.assert_close(schedule.alpha(back), alpha, rtol=0, atol=1e-10)
    torch.testing.assert_close(schedule.inverse(schedule.alpha(float64(0.0))), float64(0.0), rtol=0, atol=1e-6)


LAWS = [law_ends, law_falls, law_shape, law_derivative, law_derivative_is_the_slope, law_inverse]


def all_laws(schedule: Schedule) -> None:
    for law in LAWS:
        law(schedule)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name, law):
    law(parts.schedule(name))


# A law that nothing breaks is no law: each has a schedule that it must refuse.


class NeverNoise(Linear):
    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-t)


class Grows(Linear):
    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t + 0.1 * t * (1 - t) * torch.sin(40 * torch.pi * t)


class Rounds(Linear):
    def alpha(self, t: Tensor) -> Tensor:
        return (1.0 - t).double()


class ForgetsEps(LogLinear):
    def derivative(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)


class HalfDetached(Schedule):
    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - 0.5 * t.detach() - 0.5 * t


class CoarseInverse(Linear):
    def inverse(self, alpha: Tensor) -> Tensor:
        return (1.0 - alpha).float().double()


@pytest.mark.parametrize(
    ("law", "broken"),
    [
        (law_ends, NeverNoise()),
        (law_ends, LogLinear(eps=0.01)),
        (law_falls, Grows()),
        (law_shape, Rounds()),
        (law_derivative, ForgetsEps(eps=1e-3)),
        (law_derivative_is_the_slope, HalfDetached()),
        (law_inverse, CoarseInverse()),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_law_refuses(law, broken):
    with pytest.raises(AssertionError):
        law(broken)
