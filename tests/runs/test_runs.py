"""Run folders."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dlmkit import runs
from dlmkit.runs import RunSummary, compare
from toy_summaries import toy_summary


def folder(path: Path, status: runs.Status = "interrupted", checkpoints: tuple[str, ...] = ()) -> Path:
    toy_summary(name=path.name, status=status).write(path)
    (path / "checkpoints").mkdir()
    for name in checkpoints:
        (path / "checkpoints" / name).touch()
    (path / runs.CONFIG).touch()
    return path


def test_claim(tmp_path):
    free, used = tmp_path / "free", folder(tmp_path / "used", checkpoints=("step=2.ckpt",))
    for policy in runs.POLICIES:
        assert runs.claim(free, policy) is None
    assert runs.claim(used, "overwrite") is None
    assert runs.claim(used, "resume") == used / "checkpoints" / "step=2.ckpt"
    with pytest.raises(ValueError, match="already holds a run"):
        runs.claim(used, "refuse")
    with pytest.raises(ValueError, match="choose one of"):
        runs.claim(used, "replace")
    (used / "summary.json").write_text("{")
    assert runs.claim(used, "overwrite") is None
    with pytest.raises(ValueError, match="is not valid JSON"):
        runs.claim(used, "resume")
    assert not free.exists()


def test_finished(tmp_path):
    assert runs.finished_summary(tmp_path, 4) is None
    assert runs.finished_summary(folder(tmp_path / "a"), 4) is None
    done = folder(tmp_path / "b", "finished")
    assert runs.finished_summary(done, 4) == RunSummary.read(done)
    with pytest.raises(ValueError, match="cannot continue to 5"):
        runs.finished_summary(done, 5)


def test_checkpoint_of(tmp_path):
    run = folder(tmp_path / "run", checkpoints=("step=2.ckpt",))
    file = run / "checkpoints" / "step=2.ckpt"
    assert runs.checkpoint_of(file) == (run, file)
    with pytest.raises(ValueError, match="name one of its checkpoints"):
        runs.checkpoint_of(run)
    (run / runs.LAST_CHECKPOINT).touch()
    assert runs.checkpoint_of(run) == (run, run / runs.LAST_CHECKPOINT)
    with pytest.raises(ValueError, match="neither a run folder"):
        runs.checkpoint_of(tmp_path)


def test_a_parent_counts_what_is_behind_it(tmp_path):
    run = folder(tmp_path / "run", "finished", checkpoints=("step=2.ckpt", "last.ckpt"))
    toy_summary(name="run", total_tokens=7_000, total_flops=1e9).write(run)
    last, other = run / runs.LAST_CHECKPOINT, run / "checkpoints" / "step=2.ckpt"
    assert runs.read_parent(run) == runs.ParentRun(run, last, "run", 7_000, 1e9)
    assert runs.read_parent(other) == runs.ParentRun(other, other, "run", 7_000, 1e9)
    toy_summary(status="interrupted").write(run)
    with pytest.raises(ValueError, match=r"init_from names .*run, which has not finished"):
        runs.read_parent(other)
    with pytest.raises(ValueError, match=r"init_from names .*nowhere, which holds no finished run"):
        runs.read_parent(tmp_path / "nowhere")


def test_metrics_of_the_first_steps(tmp_path):
    assert runs.read_metrics(tmp_path, 3) == []
    (tmp_path / "metrics.csv").write_text("step,train/loss,val/nll\n0,3.0,\n1,2.5,\n1,,2.4\n2,2.0,\n")
    assert runs.read_metrics(tmp_path, 0) == []
    assert runs.read_metrics(tmp_path, 2) == [
        {"step": "0", "train/loss": "3.0"},
        {"step": "1", "train/loss": "2.5"},
        {"step": "1", "val/nll": "2.4"},
    ]


def test_git_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runs.git_commit() is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", *identity, "commit", "-q", "--allow-empty", "-m", "one"], check=True)
    commit = runs.git_commit()
    assert commit is not None
    assert len(commit) == 40
    Path("new").touch()
    assert runs.git_commit() == commit + "+"


def test_a_setting_that_came_later_and_is_null_is_no_change() -> None:
    assert compare({"seed": 0}, {"seed": 0, "backbone.lora.quantize": None}, ()).refused == {}
    assert set(compare({"seed": 0}, {"seed": 0, "backbone.lora.quantize": "4bit"}, ()).refused) == {
        "backbone.lora.quantize"
    }
