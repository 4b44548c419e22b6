"""Schedules: alpha falls from 1 to about 0, and what is derived from it agrees with it."""

from __future__ import annotations

import pytest

from dlmkit.laws import schedules as laws
from dlmkit.schedules.base import Schedule
from laws import parts
from laws.asserting import asserting

SCHEDULES = parts.names("schedule")
LAWS = [asserting(law) for law in laws.LAWS]


def all_laws(schedule: Schedule) -> None:
    for law in LAWS:
        law(schedule)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name, law):
    law(parts.schedule(name))
