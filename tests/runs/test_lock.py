"""The lock of a run folder: whose it is, and when it no longer counts."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlmkit import runs
from dlmkit.runs.lock import Holder, _started, holder_of, locked


def lock(folder: Path, **changes: object) -> Path:
    """Lock a folder by hand, as this process would, with changes."""
    (folder / runs.LOCK).write_text(json.dumps({**dataclasses.asdict(Holder.here()), **changes}))
    return folder


def ended() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lock_is_held_for_a_block(tmp_path: Path) -> None:
    with runs.locked(tmp_path / "new"):
        assert [path.name for path in (tmp_path / "new").iterdir()] == [runs.LOCK]
        with pytest.raises(ValueError, match="in use by process"), runs.locked(tmp_path / "new"):
            pass
    assert list((tmp_path / "new").iterdir()) == []


def test_a_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), runs.locked(tmp_path):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_a_living_process_counts(tmp_path: Path) -> None:
    assert not runs.is_abandoned(lock(tmp_path, pid=os.getppid(), started=_started(os.getppid())))
    assert not runs.is_abandoned(lock(tmp_path, host="elsewhere"))
    assert not runs.is_abandoned(lock(tmp_path, host="elsewhere", job="7/0"))
    refused = pytest.raises(ValueError, match=r"in use by process \d+ on elsewhere: .* delete .*/.dlmkit-lock")
    with refused, runs.locked(tmp_path):
        pass


@pytest.mark.parametrize(
    "changes", [{"boot": "another"}, {"started": 1}, {"pid": ended()}], ids=["boot", "reused", "ended"]
)
def test_a_lock_of_an_ended_process_does_not_count(tmp_path: Path, changes: dict[str, object]) -> None:
    assert runs.is_abandoned(lock(tmp_path, **changes))
    with runs.locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_process_whose_parent_has_not_looked_has_ended(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        stat = Path(f"/proc/{process.pid}/stat")
        lock(tmp_path, pid=process.pid, started=int(stat.read_text().split()[21]))
        assert not runs.is_abandoned(tmp_path)
        process.stdin.close()
        while stat.read_text().split()[2] != "Z":
            pass
        assert runs.is_abandoned(tmp_path)


def test_a_requeued_job_takes_the_lock_of_its_earlier_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock(tmp_path, host="elsewhere", job="7/0")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert not runs.is_abandoned(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert runs.is_abandoned(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert not runs.is_abandoned(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_a_lock_that_was_never_completed_does_not_count(tmp_path: Path, text: str) -> None:
    (tmp_path / runs.LOCK).write_text(text)
    with runs.locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_many_processes_one_holder(tmp_path: Path) -> None:
    """Of ten that start at once, over a stale lock, exactly one gets in."""
    lock(tmp_path, boot="another")
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom dlmkit import runs\nfolder = Path(sys.argv[1])\n"
        "while not (folder / 'go').exists(): time.sleep(0.001)\n"
        "with runs.locked(folder):\n    print('in')\n    time.sleep(2)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(10)]
    (tmp_path / "go").touch()
    assert [other.communicate()[0] for other in others].count("in\n") == 1


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\x00",
        b"[]",
        b"[" * 100_000,
        json.dumps({**dataclasses.asdict(Holder.here()), "pid": "x"}).encode(),
        json.dumps({**dataclasses.asdict(Holder.here()), "pid": 10**20}).encode(),
        json.dumps({**dataclasses.asdict(Holder.here()), "host": None}).encode(),
    ],
)
def test_a_damaged_lock_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / runs.LOCK).write_bytes(content)
    assert holder_of(tmp_path) is None
    with locked(tmp_path):
        assert holder_of(tmp_path) == Holder.here()
    assert not (tmp_path / runs.LOCK).exists()


def test_a_lock_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / runs.LOCK).symlink_to(tmp_path / "mine")
    refused = pytest.raises(ValueError, match=r"run cannot be written to \(Too many levels of symbolic links\)")
    with refused, locked(tmp_path / "run"):
        pass
    assert (tmp_path / "mine").read_text() == "precious"
