"""Schedules: alpha falls from 1 to about 0, and what is derived from it agrees with it. t = 0 is data, 1 is noise."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dlmkit.laws.findings import Finding, at_most, law, relative, worst_at
from dlmkit.schedules.base import Schedule


def float64(*values: float) -> Tensor:
    """Return the values as a tensor."""
    return torch.tensor(values, dtype=torch.float64)


def grid(num: int = 20_001) -> Tensor:
    """Return `num` even times from 0 to 1."""
    return torch.linspace(0.0, 1.0, num, dtype=torch.float64)


@law()
def law_runs_from_data_to_noise(schedule: Schedule) -> Iterator[Finding]:
    """alpha(0) = 1 and alpha(1) is near 0."""
    start, end = schedule.alpha(float64(0.0, 1.0)).tolist()
    yield at_most(
        "alpha(0) = 1", abs(start - 1.0), 1e-9, f"alpha(0) is {start:.6g}, not 1: data at t = 0 would be noisy"
    )
    yield at_most(
        "alpha(1) near 0",
        end if end >= 0 else float("inf"),
        2e-3,
        f"alpha(1) is {end:.6g}, not within [0, 2e-3]: data would be left at t = 1, where sampling starts from noise",
    )


@law()
def law_falls(schedule: Schedule) -> Iterator[Finding]:
    """Alpha is a probability and never grows."""
    t = grid()
    alpha = schedule.alpha(t)
    outside, where = worst_at(torch.maximum(-alpha, alpha - 1).clamp_min(0), t)
    yield at_most(
        "alpha in [0, 1]", outside, 0.0, f"alpha leaves [0, 1] by {outside:.2g} at t = {where:.4g}: no probability"
    )
    growth, where = worst_at(alpha.diff().clamp_min(0), t[1:])
    yield at_most(
        "alpha never grows", growth, 0.0, f"alpha grows at t = {where:.4g}: a noised token would become clean again"
    )


@law()
def law_shape(schedule: Schedule) -> Iterator[Finding]:
    """Shape and dtype are those of t, and results carry no gradient."""
    wrong = []
    for dtype in (torch.float32, torch.float64):
        t = torch.rand(3, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
        for name in ("alpha", "derivative", "inverse"):
            value = getattr(schedule, name)(t)
            if (value.shape, value.dtype) != (t.shape, dtype) or value.requires_grad:
                wrong.append(f"{name} of {dtype} is {value.dtype} {tuple(value.shape)}")
    yield at_most("shape and dtype of t", len(wrong), 0.0, f"t has shape (3, 4), {'; '.join(wrong)}")


@law()
def law_derivative(schedule: Schedule) -> Iterator[Finding]:
    """A closed form equals automatic differentiation, also without gradients (validation)."""
    t = grid()[1:-1]
    autograd = Schedule.derivative(schedule, t)
    with torch.no_grad():
        quiet = schedule.derivative(t)
    for derivative in (schedule.derivative(t), quiet):
        error, where = worst_at(relative(derivative, autograd, rtol=1e-8), t)
        yield at_most("derivative = autograd", error, 1e-8, lambda d=derivative, at=where: _slopes(t, d, autograd, at))  # type: ignore[misc]


@law()
def law_derivative_is_the_slope(schedule: Schedule) -> Iterator[Finding]:
    """The derivative is the difference quotient, with which autograd and closed forms share nothing."""
    t, step = grid(101)[1:-1], 1e-5
    slope = (schedule.alpha(t + step) - schedule.alpha(t - step)) / (2 * step)
    derivative = schedule.derivative(t)
    error, where = worst_at(relative(derivative, slope, rtol=1e-5, atol=1e-7), t)
    yield at_most("derivative = slope of alpha", error, 1e-5, lambda: _slopes(t, derivative, slope, where))


def _slopes(t: Tensor, derivative: Tensor, slope: Tensor, where: float) -> str:
    at = int((t - where).abs().argmin())
    mine, right = float(derivative[at]), float(slope[at])
    return f"d alpha/dt is {mine:.6g} at t = {where:.4g}, alpha's slope there is {right:.6g}: losses are off by as much"


@law()
def law_inverse(schedule: Schedule) -> Iterator[Finding]:
    """`inverse` undoes `alpha`."""
    t = grid(1_001)[1:-1]
    alpha = schedule.alpha(t)
    back = schedule.inverse(alpha)
    # alpha carries a rounding error of 1e-16, which the inverse stretches by 1 / |alpha'|.
    slack = 1e-12 + 4e-16 / schedule.derivative(t).abs()
    error, where = worst_at((back - t).abs() / slack, t)
    yield at_most(
        "inverse(alpha(t)) = t, in roundings",
        error,
        1.0,
        f"inverse(alpha({where:.4g})) misses t = {where:.4g} by {error:.2g} times what rounding explains",
    )
    error, where = worst_at((schedule.alpha(back) - alpha).abs(), t)
    yield at_most("alpha(inverse) = alpha", error, 1e-10, f"alpha(inverse(alpha)) misses alpha at t = {where:.4g}")
    start = float(schedule.inverse(schedule.alpha(float64(0.0))))
    yield at_most("inverse(alpha(0)) = 0", abs(start), 1e-6, f"inverse(alpha(0)) is {start:.3g}, not 0")


LAWS = [law_runs_from_data_to_noise, law_falls, law_shape, law_derivative, law_derivative_is_the_slope, law_inverse]
