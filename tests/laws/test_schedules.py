"""Schedules: alpha falls from 1 to about 0, and what is derived from it agrees with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlmkit.laws import schedules as laws
from dlmkit.schedules.base import Schedule
from dlmkit.schedules.linear import Linear
from dlmkit.schedules.log_linear import LogLinear
from laws import parts
from laws.asserting import asserting

SCHEDULES = parts.names("schedule")


law_ends, law_falls, law_shape = asserting(laws.law_ends), asserting(laws.law_falls), asserting(laws.law_shape)
law_derivative, law_inverse = asserting(laws.law_derivative), asserting(laws.law_inverse)
law_derivative_is_the_slope = asserting(laws.law_derivative_is_the_slope)

LAWS = [asserting(law) for law in laws.LAWS]


def all_laws(schedule: Schedule) -> None:
    for law in LAWS:
        law(schedule)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name, law):
    law(parts.schedule(name))
