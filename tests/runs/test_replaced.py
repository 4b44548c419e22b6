"""A run that is replaced: whatever step of it a process is killed in, the next one finds the one run or the other."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from dlmkit import runs
from dlmkit.runs import Marker
from dlmkit.runs.replaced import move_aside
from toy_summaries import toy_summary


def fill(run_dir: Path, text: str, checkpoint: bool = True) -> None:
    for name in (runs.CONFIG, runs.METRICS, "samples/step_0000001.json"):
        (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / name).write_text(text)
    if checkpoint:
        (run_dir / "checkpoints").mkdir()
        (run_dir / runs.LAST_CHECKPOINT).write_text(text)
    toy_summary(name=text).write(run_dir)
    Marker("0", text, {}).write(run_dir)


def texts(run_dir: Path) -> dict[str, str]:
    return {str(path.relative_to(run_dir)): path.read_text() for path in sorted(run_dir.rglob("*")) if path.is_file()}


class Killed(BaseException):
    pass


def killed_after(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process end at its n-th change of the disk from now on."""
    left = [number]

    def counting(name: str) -> None:
        change = getattr(Path, name)

        def changed(path: Path, *arguments: object, **options: object) -> object:
            if path.name != runs.LOCK:
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
            return change(path, *arguments, **options)

        monkeypatch.setattr(Path, name, changed)

    for name in ("rename", "unlink", "rmdir", "mkdir"):
        counting(name)


@pytest.mark.parametrize("number", range(8))
def test_killed_while_moving_aside(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "old")
    before = texts(tmp_path)
    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        killed_after(number, patch)
        move_aside(tmp_path)
    runs.settle(tmp_path)
    assert texts(tmp_path) == before


@pytest.mark.parametrize("number", range(16))
def test_killed_while_putting_back(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "old")
    before = texts(tmp_path)
    move_aside(tmp_path)
    fill(tmp_path, "new", checkpoint=False)
    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        killed_after(number, patch)
        runs.settle(tmp_path)
    runs.settle(tmp_path)
    assert texts(tmp_path) == before


@pytest.mark.parametrize("number", range(10))
def test_killed_while_deleting_the_old_run(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "old")
    move_aside(tmp_path)
    fill(tmp_path, "new")
    after = {name: text for name, text in texts(tmp_path).items() if runs.REPLACED not in name}
    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        killed_after(number, patch)
        runs.settle(tmp_path)
    runs.settle(tmp_path)
    assert texts(tmp_path) == after


def test_held_recovers_first(tmp_path: Path) -> None:
    fill(tmp_path, "old")
    move_aside(tmp_path)
    with pytest.raises(ValueError, match="already holds a run"), runs.held(tmp_path, "refuse"):
        pass
    assert texts(tmp_path)[runs.CONFIG] == "old"
    assert not runs.is_replacing(tmp_path)


@pytest.mark.parametrize("policy", ["resume", "overwrite"])
@pytest.mark.parametrize("checkpoint", [True, False])
def test_what_a_link_names_is_no_earlier_run(tmp_path: Path, policy: str, checkpoint: bool) -> None:
    """A folder from elsewhere could name any other run of the user's."""
    fill(tmp_path / "mine", "precious")
    fill(tmp_path / "run", "received", checkpoint=checkpoint)
    (tmp_path / "run" / runs.REPLACED).symlink_to(tmp_path / "mine")
    before = texts(tmp_path / "mine")
    if policy == "resume":  # of a finished run
        with runs.held(tmp_path / "run", policy):
            pass
    else:
        refused = pytest.raises(ValueError, match=r"run holds \.dlmkit-replaced, which dlmkit did not write")
        with refused, runs.held(tmp_path / "run", policy):
            pass
    assert texts(tmp_path / "mine") == before
