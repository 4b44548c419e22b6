"""What trainer.precision=auto is: a rule of the device, never of timing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dlmkit.config import check_values, compose, precision_here


@pytest.mark.parametrize(
    ("accelerator", "cuda", "bf16", "expected"),
    [
        ("auto", False, False, "32-true"),
        ("auto", True, True, "bf16-mixed"),
        ("gpu", True, True, "bf16-mixed"),
        ("cpu", True, True, "32-true"),
        ("auto", True, False, "32-true"),
    ],
)
def test_the_rule(accelerator: str, cuda: bool, bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    assert precision_here(accelerator) == expected


@pytest.mark.parametrize(("precision", "fused"), [("auto", True), ("bf16-mixed", True), ("16-mixed", False)])
def test_a_scaled_loss_has_no_fused_optimizer(precision: str, fused: bool) -> None:
    assert compose([f"trainer.precision={precision}"], Path(".")).optimizer.fused is fused


def test_asking_for_both_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optimizer\.fused true does not go with trainer\.precision 16-mixed"):
        check_values(compose(["trainer.precision=16-mixed", "optimizer.fused=true"], Path(".")))
    check_values(compose(["trainer.precision=16-mixed"], Path(".")))
