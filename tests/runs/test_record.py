"""Budgets of a run whose cost per token changes while it trains."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from dlmkit.module import DiffusionLM
from dlmkit.training.budget import flops_per_token
from toy_runs import LENGTH, TOKENS, checkpoint, curve, stop_at, summary, train, trained

COSTS: list[float] = []


class AuxiliaryLossFrom(pl.Callback):
    """Adds the auxiliary next-token loss, and with it a pass, from a step on."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, DiffusionLM)
        pl_module.ar_weight = 0.5 if trainer.global_step >= self.step else 0.0
        COSTS.append(flops_per_token(pl_module, LENGTH))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setitem(sys.modules, "test_record", sys.modules[__name__])
    COSTS.clear()


CHANGING = ["+callbacks.auxiliary={_target_: test_record.AuxiliaryLossFrom, step: 2}", "validation.every_steps=1"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_step_costs_what_it_costs_then(accumulate: int) -> None:
    run = trained("run", *CHANGING, f"batch.accumulate={accumulate}", steps=4)
    costs = COSTS[::accumulate]
    assert costs[0] == costs[1] < costs[2] == costs[3]
    spent = [TOKENS * sum(costs[: step + 1]) for step in range(4)]
    logged = sorted({value for _, value in curve(run, "total_flops")})  # also beside validations
    assert logged == pytest.approx(spent, rel=1e-12)
    assert summary(run)["flops"] == summary(run)["total_flops"] == pytest.approx(spent[-1], rel=1e-12)


def test_a_resumed_run_adds_to_what_was_spent() -> None:
    whole = trained("whole", *CHANGING, steps=4)
    assert train("parts", *CHANGING, stop_at(3), steps=4).code == 130
    parts = trained("parts", *CHANGING, "if_exists=resume", steps=4)
    assert summary(parts)["flops"] == summary(whole)["flops"]
    assert curve(parts, "total_flops") == curve(whole, "total_flops")
    for run in (whole, parts):
        state = checkpoint(run)["callbacks"]["RunRecord"]
        assert (state["steps"], state["flops"]) == (4, summary(whole)["flops"])


def test_the_command_line_of_the_process_is_restored() -> None:
    before = list(sys.argv)
    trained("run")
    assert sys.argv == before
    assert train("run").code == 2  # the folder is in use
    assert sys.argv == before
