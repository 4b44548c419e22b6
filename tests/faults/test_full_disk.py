"""A disk that takes no more ends a run in one line, and costs nothing that was saved."""

from __future__ import annotations

import resource
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlmkit.checkpoints.verify import check
from toy_runs import Outcome, same_end, summary, train, trained

STEPS = 12
KEPT = ["callbacks.checkpoint.save_top_k=-1"]


def mounted(place: Path, kilobytes: int) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
    return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0


def may_mount() -> bool:
    with tempfile.TemporaryDirectory() as place:
        return mounted(Path(place), 4) and subprocess.run(["umount", place]).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A place for a small file system."""
    place = tmp_path / "disk"
    place.mkdir()
    yield place
    subprocess.run(["umount", str(place)], check=False, stderr=subprocess.DEVNULL)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of this process."""
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def assert_ended_well(outcome: Outcome, run: Path, scratch: Path, reason: str) -> None:
    assert outcome.code == 2
    lines = outcome.err.splitlines()
    assert reason in lines[-1]
    assert "continue with if_exists=resume" in lines[-1]
    assert len(lines) <= 2, outcome.err  # the line with which a run begins, and this one
    assert [*scratch.iterdir(), *run.parent.rglob(".*.*.*")] == []
    if (run / "summary.json").is_file():
        assert summary(run)["status"] == "failed"
    for file in run.glob("checkpoints/*.ckpt"):
        check(file)


@pytest.mark.skipif(not may_mount(), reason="makes a tmpfs, which takes a privilege; the next test does without")
@pytest.mark.parametrize(("kilobytes", "saved"), [(4, 0), (16, 0), (24, 0), (48, 0), (120, 1), (160, 1), (260, 2)])
def test_a_full_disk(disk: Path, scratch: Path, kilobytes: int, saved: int) -> None:
    """At any moment: while the folder is made, in a log, in a save. With room again, the run goes on."""
    assert mounted(disk, kilobytes)
    run, logger = disk / "run", f"logger={'tensorboard' if kilobytes < 20 else 'none'}"
    assert_ended_well(train(str(run), *KEPT, logger, steps=STEPS), run, scratch, "No space left on device")
    assert len(list(run.glob("checkpoints/*.ckpt"))) >= saved
    subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
    again = train(str(run), *KEPT, "if_exists=resume", steps=STEPS)
    assert again.code == 0, again.err
    assert same_end(run, trained("whole", *KEPT, steps=STEPS))


def test_a_file_that_may_not_grow(scratch: Path) -> None:
    """A limit on the size of files, as some clusters set: above that of every log, below that of a checkpoint."""
    run, soft_hard = Path("files/run"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, soft_hard[1]))
    try:
        outcome = train(str(run), *KEPT, steps=STEPS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft_hard)
    assert_ended_well(outcome, run, scratch, "File too large")
    assert train(str(run), *KEPT, "if_exists=resume", steps=STEPS).code == 0
    assert same_end(run, trained("whole", *KEPT, steps=STEPS))
