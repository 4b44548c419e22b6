"""Run folders: no file that dlmkit did not write is touched, and no run is lost before another one takes its place."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from processes import contents, ended, kill, start, until, wait

from dlmkit import runs
from toy_runs import TOY, checkpoint, dlmkit, stop_at, summary, train, trained

POLICIES = [f"if_exists={policy}" for policy in runs.POLICIES]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["notes.md", "summary.json", "checkpoints/mine.ckpt", ".env"])
def test_a_folder_of_the_users_is_refused_untouched(policy: str, name: str) -> None:
    file = Path("mine") / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    outcome = train("mine", policy)
    assert outcome.code == 2
    assert "was not made by dlmkit" in outcome.line
    assert contents(Path("mine")) == {name: b"mine"}


def test_an_empty_folder_may_be_made_before() -> None:
    Path("mine").mkdir()
    trained("mine")


@pytest.mark.parametrize("name", ["notes.md", "checkpoints/notes.md", "samples/mine.txt", "config.yaml.bak"])
def test_a_file_that_was_put_into_a_run_survives(name: str) -> None:
    run = trained("run")
    (run / name).write_text("mine")
    before = contents(run)
    outcome = train("run", "if_exists=overwrite")
    assert outcome.code == 2
    assert f"holds {name}, which dlmkit did not write" in outcome.line
    assert contents(run) == before


def test_a_file_that_was_put_into_an_interrupted_run_does_not_keep_it_from_going_on() -> None:
    assert train("run", stop_at(3), steps=4).code == 130
    Path("run/notes.md").write_text("mine")
    assert train("run", "if_exists=auto", steps=4).code == 0
    assert Path("run/notes.md").read_text() == "mine"


@pytest.mark.long
def test_a_file_that_comes_while_a_run_fails_in_its_first_step_survives() -> None:
    process = start("run", wait(0))
    until(Path("run/summary.json").exists)
    Path("run/notes.md").write_text("mine")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    assert ended(process).code == 130
    assert contents(Path("run")) == {"notes.md": b"mine"}


def test_a_run_without_its_record_is_not_emptied() -> None:
    assert train("run", stop_at(3), steps=4).code == 130
    Path("run/summary.json").unlink()
    before = contents(Path("run"))
    outcome = train("run", steps=4)
    assert outcome.code == 2
    assert "already holds a run (without summary.json)" in outcome.line
    assert contents(Path("run")) == before
    assert summary(trained("run", "if_exists=auto", steps=4))["status"] == "finished"


def test_a_run_of_an_earlier_version_has_no_marker() -> None:
    run = trained("run")
    (run / runs.MARKER).unlink()
    assert "already holds a run (finished)" in train("run").line
    (run / "notes.md").write_text("mine")
    assert "was not made by dlmkit and holds notes.md" in train("run", "if_exists=overwrite").line
    (run / "notes.md").unlink()
    trained("run", "if_exists=overwrite", "seed=1")
    assert (run / runs.MARKER).is_file()


def test_leftovers_of_an_interrupted_write_are_the_runs_own() -> None:
    run = trained("run")
    for name in ("summary.json", "checkpoints/step=2.ckpt"):
        file = run / name
        file.with_name(f".{file.name}.{'0' * 32}").write_text("part")
    trained("run", "if_exists=overwrite")
    assert not list(run.rglob(".*.0*"))


def test_the_earlier_run_is_back_when_the_new_one_has_saved_nothing() -> None:
    before = contents(trained("run"))
    with pytest.raises(RuntimeError, match="stopped by the test"):
        train("run", "if_exists=overwrite", "seed=1", stop_at(1, error="RuntimeError"))
    assert contents(Path("run")) == before
    outcome = train("run", "if_exists=overwrite", "seed=1", stop_at(1))
    assert outcome.code == 130
    assert "the run that was to be replaced is back" in outcome.err
    assert contents(Path("run")) == before


def test_the_new_run_stays_once_it_has_a_checkpoint() -> None:
    trained("run")
    assert train("run", "if_exists=overwrite", "seed=1", stop_at(3), steps=4).code == 130
    assert not Path("run", runs.REPLACED).exists()
    assert (summary(Path("run"))["seed"], summary(Path("run"))["status"]) == (1, "interrupted")


def test_killed_before_the_first_checkpoint_of_the_new_run() -> None:
    """The next start, whatever it is, finds the earlier run, and the report does not see it twice meanwhile."""
    before = contents(trained("run"))
    process = start("run", "if_exists=overwrite", "seed=1", wait(1))
    until(lambda: Path("run", runs.REPLACED).exists() and Path("run/summary.json").exists())
    kill(process)
    assert Path("run", runs.REPLACED).is_dir()
    assert "no finished run (run is interrupted (its process was killed))" in dlmkit("report", "run").line
    assert "finished already" in train("run", "if_exists=auto").line
    assert contents(Path("run")) == before


def test_killed_after_the_first_checkpoint_of_the_new_run() -> None:
    trained("run")
    process = start("run", "if_exists=overwrite", "seed=1", wait(3), steps=4)
    until(lambda: Path("run", runs.REPLACED).exists())
    until(Path("run/checkpoints/step=2.ckpt").exists)
    kill(process)
    assert "already holds a run (killed)" in train("run", steps=4).line
    trained("run", "seed=1", "if_exists=auto", steps=4)
    assert checkpoint(Path("run"))["global_step"] == 4
    assert not Path("run", runs.REPLACED).exists()


def test_two_processes_cannot_write_one_folder() -> None:
    process = start("run", wait(1), steps=4)
    until(Path("run/summary.json").exists)
    for policy in ("overwrite", "auto"):
        outcome = train("run", f"if_exists={policy}", wait(1), steps=4)
        assert outcome.code == 2
        assert f"in use by process {process.pid} on" in outcome.line
    assert "already holds a run (running)" in train("run", steps=4).line
    Path("go").touch()
    outcome = ended(process)
    assert outcome.code == 0, outcome.err
    assert not Path("run", runs.LOCK).exists()


def test_a_quote_in_the_name_on_two_devices() -> None:
    name = "x/bob's \\'runs"
    process = start(f'"{name}"', "trainer.devices=2", "trainer.accelerator=cpu")
    outcome = ended(process)
    assert outcome.code == 0, outcome.err
    assert summary(next(Path("x").iterdir()))["status"] == "finished"


def test_a_sweep_leaves_the_users_multirun_alone() -> None:
    Path("mine").mkdir()
    Path("mine/multirun.yaml").write_text("mine")
    outcome = dlmkit("train", *TOY, "hydra.sweep.dir=mine", "seed=0,1", "-m")
    assert "mine/multirun.yaml is not the record of a sweep" in outcome.line
    assert contents(Path("mine")) == {"multirun.yaml": b"mine"}
