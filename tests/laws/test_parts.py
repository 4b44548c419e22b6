"""A new part is one class and one YAML, and the laws find it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from dlmkit.laws.pairing import INTERFACES
from dlmkit.schedules.base import Schedule
from laws import parts
from laws.test_schedules import all_laws


class Elsewhere(Schedule):
    """A user's schedule, in a file of the user's."""

    def __init__(self, power: float) -> None:
        self.power = power

    def alpha(self, t: Tensor) -> Tensor:
        return (1.0 - t) ** self.power


@pytest.mark.parametrize("group", [group for group in INTERFACES if group != "backbone"])
def test_every_yaml_builds_a_part_of_its_group(group):
    assert parts.names(group)
    for name in parts.names(group):
        part = parts.build(group, name)
        assert isinstance(part, INTERFACES[group]), f"conf/{group}/{name}.yaml"
        assert part.label == f"{group}={name}"  # as messages have it


def test_a_new_schedule_needs_one_class_and_one_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("elsewhere")
    module.Elsewhere = Elsewhere  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    (tmp_path / "schedule").mkdir()
    (tmp_path / "schedule" / "mine.yaml").write_text("_target_: elsewhere.Elsewhere\npower: 2.5\n")

    assert parts.names("schedule", conf=tmp_path) == ["mine"]
    mine = parts.build("schedule", "mine", "mine", conf=tmp_path)
    all_laws(mine)
    t = torch.tensor([0.25, 0.75], dtype=torch.float64)
    torch.testing.assert_close(mine.derivative(t), -2.5 * (1 - t) ** 1.5, rtol=1e-12, atol=0)
