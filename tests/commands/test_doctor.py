"""`dlmkit doctor` says whether bf16-mixed pays, from what it measures."""

from __future__ import annotations

import pytest
import torch

from dlmkit.commands.precision import Speeds, verdict
from dlmkit.rates import best_seconds, product_rate


@pytest.mark.parametrize(
    ("gain", "auto", "line"),
    [
        (
            2.0,
            "32-true",
            "bf16-mixed pays here: {}; trainer.precision=auto is 32-true; set trainer.precision=bf16-mixed",
        ),
        (0.5, "32-true", "bf16-mixed does not pay here: {}; trainer.precision=auto is 32-true"),
        (2.0, "bf16-mixed", "bf16-mixed pays here: {}; trainer.precision=auto is bf16-mixed"),
        (0.5, "bf16-mixed", "bf16-mixed does not pay here: {}; trainer.precision=auto is bf16-mixed; set"),
    ],
)
def test_the_verdict(gain: float, auto: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlmkit.commands.precision.precision_here", lambda accelerator: auto)
    speeds = Speeds({"float32": 1e9, "bf16": 4e9}, {"float32": 100.0, "bf16": 100.0 * gain})
    expected = line.format(f"a small training step is {gain:.1f} times as fast as in float32")
    assert verdict(speeds).startswith(expected)
    assert verdict(speeds).endswith(("it", "32-true", "is bf16-mixed"))


def test_a_rate_is_of_work_that_was_done() -> None:
    cpu = torch.device("cpu")
    assert product_rate(cpu, torch.float32) > 1e8
    calls: list[int] = []
    assert best_seconds(lambda: calls.append(1), cpu) > 0.0
    assert len(calls) == 4
