"""A loss or gradient that is not finite stops the run at that step, or the step is left out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from faults_poison import WEIGHTS

from dlmkit.callbacks.finite import fingerprint
from toy_runs import TOKENS, TOY, curve, summary, train, trained, weights


def poison(steps: list[int], value: str, into: str) -> str:
    node = f"{{_target_: faults_poison.Poison, steps: {steps}, value: number_{value}, into: {into}}}"
    return f"+callbacks.poison={node}"


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("into", ["gradient", "weights"])
def test_the_run_stops_at_that_step(value: str, into: str) -> None:
    outcome = train("runs/x", poison([2], value, into), steps=6)
    assert outcome.code == 2
    line = outcome.err.splitlines()[-1]
    assert line.startswith("dlmkit train: step 2 has loss ")
    assert "in the batch " in line
    assert "Traceback" not in outcome.err
    assert summary(Path("runs/x"))["status"] == "failed"
    assert summary(Path("runs/x"))["steps"] == 2
    again = train("runs/y", poison([2], value, into), "batch.accumulate=2", steps=6)
    assert line.partition("batch ")[2] == again.err.splitlines()[-1].partition("batch ")[2]  # however it is divided


def test_a_skipped_step_changes_no_weight() -> None:
    WEIGHTS.clear()
    run = trained("runs/x", poison([1, 3], "nan", "gradient"), "non_finite.policy=skip", steps=5)
    changed = [
        any(not torch.equal(a, b) for a, b in zip(WEIGHTS[step], WEIGHTS[step + 1], strict=True))
        for step in range(1, 5)
    ]
    assert changed == [False, True, False, True]
    assert curve(run, "train/skipped_steps") == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
    assert all(value.isfinite().all() for value in weights(run).values() if value.is_floating_point())


@pytest.mark.long
def test_ranks_skip_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank alone has NaN, after the gradients were averaged: both leave the step out, and stay equal."""
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*filter(None, sys.path), str(here), str(here.parent)]))
    options = [
        "trainer.accelerator=cpu",
        "non_finite.policy=skip",
        f"budget.tokens={4 * TOKENS}",
        "hydra.run.dir=runs/x",
    ]
    command = [sys.executable, "-m", "dlmkit.cli", "train", *TOY, *options, "trainer.devices=2", "hydra.run.dir=runs/x"]
    done = subprocess.run([*command, poison([1], "nan", "gradient")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = Path("runs/x")
    assert [value for _, value in curve(run, "train/skipped_steps")] == [1.0, 1.0, 1.0]
    assert summary(run)["status"] == "finished"
    stopped = subprocess.run(
        [*command, "non_finite.policy=stop", "if_exists=overwrite", poison([1], "nan", "gradient")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert stopped.returncode == 2
    assert "dlmkit train: step 1 has loss" in stopped.stderr


def test_skipping_is_bounded() -> None:
    options = ["non_finite.policy=skip", "non_finite.max_skipped=1"]
    outcome = train("runs/x", poison([1, 3], "nan", "gradient"), *options, steps=5)
    assert outcome.code == 2
    assert "step 3 has loss" in outcome.err
    assert "after 1 skipped steps" in outcome.err


def test_a_validation_that_is_not_finite_fails() -> None:
    """The last step spoils the weights: no loss shows it any more."""
    outcome = train("runs/x", "+callbacks.spoil={_target_: faults_poison.SpoilAtTheEnd}", steps=2)
    assert outcome.code == 2
    assert "the validation at step 2 has nll nan" in outcome.err.splitlines()[-1]
    assert summary(Path("runs/x"))["status"] == "failed"


def test_the_fingerprint_is_of_the_set_of_sequences() -> None:
    rows = list(torch.arange(12).view(3, 4))
    assert fingerprint(rows) == fingerprint(rows[::-1])
    assert fingerprint(rows) != fingerprint([*rows[:2], rows[2] + 1])
