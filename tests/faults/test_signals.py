"""SIGTERM and SIGINT save and stop, a second SIGINT stops at once, Slurm's signal puts the job back into the queue."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest
import torch
from processes import ended, send, start, until, wait

from dlmkit import runs
from toy_runs import checkpoint, metrics, summary, train, trained

STEPS = 6  # validated after 2, 4 and 6
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
CLOCKS = ("train/time", "train/device/", "epoch")

RUNS = {
    "absorbing": [],
    "ema": ["callbacks=[samples,throughput,checkpoint,ema]", "callbacks.ema.decay=0.5"],
    "accumulate": ["batch.accumulate=2"],
    "learned": ["t_sampler=learned", "t_sampler.num_bins=4", "t_sampler.warmup_draws=2"],
    "growing": ["family=block", "objective.block_size=2", "+callbacks.grow={_target_: processes.GrowBlocks, step: 2}"],
    "without checkpoints": ["callbacks=[samples]"],
    "checkpoints by steps": ["callbacks.checkpoint.every_n_epochs=null", "+callbacks.checkpoint.every_n_train_steps=5"],
}
PLACES = {
    "before a step": "on_train_batch_start",
    "in a step": "on_before_optimizer_step",
    "after a step": "on_train_batch_end",
    "in a validation": "on_validation_batch_start",
}
CASES = [("absorbing", place) for place in PLACES] + [(run, "in a step") for run in RUNS if run != "absorbing"]


@pytest.mark.parametrize("step", [2, pytest.param(3, marks=pytest.mark.long)])
@pytest.mark.parametrize(("run", "place"), CASES)
def test_a_signal_saves_and_the_run_ends_as_if_it_had_not_come(run: str, place: str, step: int) -> None:
    if place == "in a validation" and step % 2:
        step = 2
    overrides = RUNS[run]
    whole = trained("whole", *overrides, steps=STEPS)
    outcome = train("parts", *overrides, send(step, signal.SIGTERM, hook=PLACES[place]), steps=STEPS)
    assert outcome.code == 143
    assert outcome.err.splitlines()[-1].startswith("dlmkit train: interrupted: continue with the same command and")
    stopped = summary(Path("parts"))
    assert (stopped["status"], stopped["error"]) == ("interrupted", "stopped by SIGTERM")
    done = step + (place in ("before a step", "in a step"))
    done += run == "checkpoints by steps" and done % 2 == 0  # a validation, after which its callback does not save
    assert stopped["steps"] == done, "the step that it came in is completed, and no other"
    newest = runs.last_checkpoint(Path("parts"), "auto")
    assert newest is not None
    assert checkpoint(Path("parts"), newest.name)["global_step"] == done
    parts = trained("parts", *overrides, "if_exists=auto", steps=STEPS)
    assert_same_end(whole, parts)
    assert not (parts / runs.STOP_CHECKPOINT).exists()


def assert_same_end(whole: Path, parts: Path) -> None:
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "parts", "settings"):
        torch.testing.assert_close(checkpoint(parts)[key], checkpoint(whole)[key], rtol=0, atol=0)
    assert without_clocks(parts) == without_clocks(whole)
    same = ("val_nll", "val_nll_stderr", "steps", "tokens_seen", "total_flops", "status", "error")
    assert {key: summary(parts)[key] for key in same} == {key: summary(whole)[key] for key in same}


def without_clocks(run_dir: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv, counters of batches, sequences and tokens included."""
    return [{key: row[key] for key in sorted(row) if not key.startswith(CLOCKS)} for row in metrics(run_dir)]


@pytest.mark.parametrize("signum", CODES)
def test_the_exit_code_is_the_signals(signum: signal.Signals) -> None:
    assert train("run", send(3, signum), steps=STEPS).code == CODES[signum]
    assert summary(Path("run"))["error"] == f"stopped by {signum.name}"


def test_a_second_interrupt_stops_at_once() -> None:
    outcome = train("run", send(3, signal.SIGINT, times=2), steps=STEPS)
    assert outcome.code == 130
    assert summary(Path("run"))["steps"] == 3
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step=2.ckpt"]


def test_a_second_termination_does_not_keep_the_run_from_saving() -> None:
    assert train("run", send(2, signal.SIGTERM, times=3), steps=STEPS).code == 143
    assert checkpoint(Path("run"), "stopped.ckpt")["global_step"] == 3


def test_in_the_last_step_and_after_it() -> None:
    whole = trained("whole", steps=3)
    for name, step, hook in (("step", 2, "on_train_batch_start"), ("after", 3, "on_validation_start")):
        assert train(name, send(step, signal.SIGTERM, hook=hook), steps=3).code == 143
        assert summary(Path(name))["status"] == "interrupted"
        assert_same_end(whole, trained(name, "if_exists=auto", steps=3))


def test_before_the_first_step_nothing_is_left() -> None:
    assert train("run", send(0, signal.SIGTERM, hook="on_fit_start")).code == 143
    assert not Path("run").exists()


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(signum) for signum in CODES]
    train("run", send(3, signal.SIGTERM), steps=STEPS)
    trained("other")
    assert [signal.getsignal(signum) for signum in CODES] == before


@pytest.mark.long
def test_workers_and_two_ranks() -> None:
    """Ctrl-C in a terminal reaches every process of a run; kill reaches the first."""
    ranks = ["trainer.devices=2", "trainer.accelerator=cpu", "batch.num_workers=1"]
    whole = start("whole", *ranks, steps=STEPS)
    assert ended(whole).code == 0
    process = start("parts", *ranks, send(2, signal.SIGTERM), steps=STEPS)
    outcome = ended(process)
    assert outcome.code == 143, outcome.err
    assert checkpoint(Path("parts"), "stopped.ckpt")["global_step"] == 3
    assert ended(start("parts", *ranks, "if_exists=auto", steps=STEPS)).code == 0
    assert_same_end(Path("whole"), Path("parts"))


def test_an_interrupt_of_all_ranks_and_workers() -> None:
    ranks = ["trainer.devices=2", "trainer.accelerator=cpu", "batch.num_workers=1"]
    process = start("run", *ranks, wait(3), steps=STEPS)
    until(Path("run/checkpoints/step=2.ckpt").exists)
    os.killpg(process.pid, signal.SIGINT)
    Path("go").touch()
    outcome = ended(process)
    assert outcome.code == 130, outcome.err
    assert outcome.err.count("interrupted") == 1
    assert summary(Path("run"))["status"] == "interrupted"
    assert not Path("run", runs.LOCK).exists()


SCONTROL = """#!/bin/sh
echo "$@" > requeued
"""


@pytest.mark.parametrize("policy", ["auto", "refuse"])
def test_slurms_signal_puts_the_job_back_if_it_would_continue(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("bin").mkdir()
    Path("bin/scontrol").write_text(SCONTROL)
    Path("bin/scontrol").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{Path('bin').absolute()}:/usr/bin:/bin")
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "toy", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_LOCALID", "0")
    monkeypatch.setenv("SLURM_NODEID", "0")
    outcome = train("run", send(2, signal.SIGUSR1), f"if_exists={policy}", steps=STEPS)
    assert outcome.code == 128 + signal.SIGUSR1
    assert checkpoint(Path("run"), "stopped.ckpt")["global_step"] == 3
    assert [file.read_text() for file in Path().glob("requeued")] == (["requeue 7\n"] if policy == "auto" else [])
    assert list(Path("run").glob("hpc_ckpt*")) == []
