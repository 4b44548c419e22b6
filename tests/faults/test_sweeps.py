"""Sweeps: what is missing is made, one failed run stops no other, and the last line says what failed and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from processes import contents

from dlmkit.module import DiffusionLM
from toy_runs import TOKENS, TOY, Outcome, dlmkit, stop_at, summary, train


class Fail(pl.Callback):
    """Raises an error at a step of each autoregressive run, until there is a file `luck`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        assert isinstance(pl_module, DiffusionLM)
        if (
            not Path("luck").exists()
            and trainer.global_step == self.step
            and pl_module.objective.name == "autoregressive"
        ):
            raise RuntimeError("the machine is out of luck")


FAIL = "+callbacks.fail={_target_: test_sweeps.Fail, step: 3}"


def sweep(*overrides: str) -> Outcome:
    """A sweep of three families with two seeds each, of which family=adapted starts from family=ar."""
    settings = [f"budget.tokens={4 * TOKENS}", "hydra.sweep.dir=runs"]
    return dlmkit("train", "family=adapted,ar,absorbing", "seed=0,1", *TOY, *settings, *overrides, "-m")


def summaries() -> dict[tuple[str, int], dict[str, Any]]:
    """The record of each run of the sweep by family and seed."""
    records = [summary(path.parent) for path in Path("runs").glob("*/summary.json")]
    return {(record["family"], record["seed"]): record for record in records}


def test_one_failed_run_stops_only_those_that_start_from_it() -> None:
    outcome = sweep(FAIL)
    assert outcome.code == 2
    last = outcome.err.splitlines()[-1]
    assert last.startswith("dlmkit train: 4 of 6 runs failed: ")
    assert "family=ar,seed=0: RuntimeError: the machine is out of luck" in last
    assert "family=adapted,seed=1: not started, since family=ar,seed=1 failed" in last
    assert "absorbing" not in last
    states = summaries()
    assert {name: state["status"] for name, state in states.items()} == {
        ("ar", 0): "failed",
        ("ar", 1): "failed",
        ("absorbing", 0): "finished",
        ("absorbing", 1): "finished",
    }
    assert states["ar", 0]["error"] == "RuntimeError: the machine is out of luck"
    assert states["absorbing", 0]["error"] is None


def test_the_report_names_what_failed_and_why() -> None:
    sweep(FAIL)
    report = dlmkit("report", "runs")
    assert report.code == 0
    line = "is failed (RuntimeError: the machine is out of luck), not finished"
    assert report.out.count(line) == 2
    assert line in Path("runs/report.html").read_text()


@pytest.mark.long
def test_a_sweep_continues_with_what_is_missing() -> None:
    """Finished runs stay as they are; one that failed goes on, those that never began start."""
    sweep(FAIL)
    folder = Path("runs") / summaries()["absorbing", 0]["name"]
    finished = contents(folder)
    Path("luck").touch()
    outcome = sweep(FAIL, "if_exists=auto")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("finished already") == 2
    assert contents(folder) == finished
    states = summaries()
    assert len(states) == 6
    assert {state["status"] for state in states.values()} == {"finished"}
    assert {state["error"] for state in states.values()} == {None}
    assert states["adapted", 1]["init_from"] == states["ar", 1]["name"]


def test_a_value_that_one_run_refuses() -> None:
    settings = ["budget.tokens=32", "hydra.sweep.dir=runs", "hydra.sweep.subdir=${hydra:job.num}"]
    outcome = dlmkit("train", *TOY, *settings, "optimizer.lr=-1,0.001,fast", "-m")
    assert outcome.code == 2
    last = outcome.err.splitlines()[-1]
    assert last.startswith("dlmkit train: 2 of 3 runs failed: optimizer.lr=-1: ")
    assert "| optimizer.lr=fast: optimizer.lr 'fast' is not a number" in last
    assert summary(Path("runs/1"))["status"] == "finished", "runs are numbered as if none had failed"


def test_an_error_that_is_a_fault_is_shown_in_full() -> None:
    outcome = sweep(FAIL)
    assert "Traceback" in outcome.err
    assert "in on_train_batch_start" in outcome.err


def test_a_typing_error_stops_the_sweep_before_its_first_run() -> None:
    assert "(nearest: cosine)" in sweep("schedule=linear,cosin").line
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


def test_auto_on_missing_interrupted_and_finished_runs() -> None:
    for steps in (4, 4):
        outcome = train("run", "if_exists=auto", stop_at(3), steps=steps)
        assert outcome.code == 130
    assert train("run", "if_exists=auto", steps=4).code == 0
    assert "finished already" in train("run", "if_exists=auto", steps=4).line
