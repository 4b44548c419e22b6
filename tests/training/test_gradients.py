"""Scaling and clipping in one pass is scaling, then torch's clipping."""

from __future__ import annotations

import pytest
import torch

from dlmkit.training.gradients import scale_and_clip


@pytest.mark.parametrize("most", [None, 0.0, 0.1, 100.0])
@pytest.mark.parametrize("factor", [0.0, 0.5, 3.0])
def test_it_is_what_torch_does_in_two(factor: float, most: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), ())]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    ours = [parameter.grad.clone() for parameter in parameters]
    scale_and_clip(ours, float(torch.nn.utils.get_total_norm(ours)), factor, most)
    torch._foreach_mul_([parameter.grad for parameter in parameters], factor)
    if most:
        torch.nn.utils.clip_grad_norm_(parameters, most)
    torch.testing.assert_close(ours, [parameter.grad for parameter in parameters])
