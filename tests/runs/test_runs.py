"""Run folders."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dlmkit import runs


def folder(path: Path, status: str = "interrupted", steps: int = 4, checkpoints: tuple[str, ...] = ()) -> Path:
    runs.write_summary(path, {"status": status, "steps": steps})
    (path / "checkpoints").mkdir()
    for name in checkpoints:
        (path / "checkpoints" / name).touch()
    (path / runs.CONFIG).touch()
    return path


def test_summary_is_written_whole(tmp_path):
    run = tmp_path / "deep" / "run"
    assert runs.read_summary(run) is None
    runs.write_summary(run, {"status": "running"})
    runs.write_summary(run, {"status": "finished"})
    assert runs.read_summary(run) == {"status": "finished"}
    assert [path.name for path in run.iterdir()] == ["summary.json"]


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
    assert not free.exists()


def test_finished(tmp_path):
    assert runs.finished_summary(tmp_path, 4) is None
    assert runs.finished_summary(folder(tmp_path / "a"), 4) is None
    done = folder(tmp_path / "b", "finished")
    assert runs.finished_summary(done, 4) == {"status": "finished", "steps": 4}
    with pytest.raises(ValueError, match="cannot go on to 5"):
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
