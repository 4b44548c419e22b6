"""Masking again, by the exact law of the chain: how fast it tends to the data, and what stays."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from dlmkit.laws.remasking import remasked_law
from dlmkit.laws.samplers import Exact, distribution_after, total_variation
from dlmkit.laws.source import random_source
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.absorbing import Absorbing
from dlmkit.samplers.remasking import Remasking
from dlmkit.samplers.remdm import ReMDM
from dlmkit.samplers.remdm_loop import ReMDMLoop
from dlmkit.schedules.linear import Linear

NOISE = Absorbing(Linear(), 3, 2)
SOURCE = random_source(3, 3, 2)


def distances(sampler: Remasking, *steps: int) -> list[float]:
    """Total variation to the data, of three tokens of two kinds."""
    return [total_variation(remasked_law(sampler, NOISE, SOURCE, num), SOURCE.joint.flatten()) for num in steps]


def test_without_masking_again_it_is_ancestral():
    for num in (3, 8):
        ancestral = distribution_after(num, Exact(SOURCE, NOISE, X0LeaveOneOut()), NOISE)
        for sampler in (ReMDM(eta=0.0), ReMDM(rule="rescale", eta=0.0)):
            torch.testing.assert_close(remasked_law(sampler, NOISE, SOURCE, num), ancestral, rtol=0, atol=1e-14)


def test_rates_of_convergence():
    """Error 1/T without masking again, slower with a fixed eta, 1/T again with eta = 3.2 / T."""
    plain = distances(ReMDM(eta=0.0), 4, 16, 64, 256)
    assert plain == pytest.approx([0.0946, 0.0239, 0.0060, 0.0015], rel=0.01)
    fixed = distances(ReMDM(eta=0.2), 4, 16, 64, 256)
    assert fixed == pytest.approx([0.1078, 0.0554, 0.0404, 0.0266], rel=0.01)
    scaled = [distances(ReMDM(eta=3.2 / num), num)[0] for num in (4, 16, 64, 256)]
    for coarse, fine in pairwise(scaled[1:]):
        assert 0.2 < fine / coarse < 0.35
    rescaled = distances(ReMDM(rule="rescale", eta=0.2), 16, 64, 256)
    assert rescaled == pytest.approx([0.0369, 0.0183, 0.0098], rel=0.01)


def test_a_loop_leaves_a_bias_of_the_order_of_eta():
    """However many steps: several tokens move in each step of the loop, whose noise level does not fall."""
    few, many = distances(ReMDMLoop(eta=0.1), 64, 256)
    assert many == pytest.approx(0.0278, rel=0.01)
    assert few == pytest.approx(many, rel=0.05)
    assert distances(ReMDMLoop(eta=0.05), 128)[0] == pytest.approx(many / 2, rel=0.1)
    assert distances(ReMDMLoop(eta=0.0), 128)[0] < many / 4
    assert not ReMDMLoop().faithful
    assert ReMDMLoop(eta=0.0).faithful
