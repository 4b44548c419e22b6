"""The folder of a run: whether it is free, where its checkpoints are, and what another run takes from it."""

from __future__ import annotations

import contextlib
import csv
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dlmkit.runs.contents import CHECKPOINTS, CONFIG, MARKER, METRICS, Marker, clear, foreign_entry, is_empty, is_run
from dlmkit.runs.lock import is_abandoned, locked
from dlmkit.runs.replaced import has_checkpoint, is_replacing, move_aside, settle
from dlmkit.runs.summary import SUMMARY, RunSummary

LAST_CHECKPOINT = Path(CHECKPOINTS) / "last.ckpt"
STOP_CHECKPOINT = Path(CHECKPOINTS) / "stopped.ckpt"
"""Where a run that a signal stops between two validations is saved."""
RESUMING = ("resume", "auto")
POLICIES = ("refuse", "overwrite", *RESUMING)


@dataclass(frozen=True)
class ParentRun:
    """The finished run that another run starts from.

    Attributes:
        path: its folder or its checkpoint, as it was named.
        checkpoint: the file with its weights.
        name: of its folder.
        tokens: training tokens behind it, with those of the runs that it started from.
        flops: training FLOPs behind it, counted likewise.
    """

    path: Path
    checkpoint: Path
    name: str
    tokens: int
    flops: float


def claim(run_dir: Path, policy: str) -> Path | None:
    """Check that `run_dir` may be used for a run, and return the checkpoint to resume from, if any. Changes nothing.

    With "resume" or "auto", which are the same, a run that stopped before its first checkpoint starts over, and a
    missing one starts.

    Args:
        run_dir: the run's folder.
        policy: what to do with a folder in use: "refuse", "overwrite", "resume" or "auto".

    Raises:
        ValueError: dlmkit did not make the folder, it holds a run and the policy is "refuse", or a run that would be
            replaced has something foreign in its folder.
    """
    if policy not in POLICIES:
        raise ValueError(f"if_exists {policy!r} is unknown: choose one of {', '.join(POLICIES)}")
    if is_empty(run_dir):
        return None
    if not is_run(run_dir):
        raise ValueError(
            f"{run_dir} was not made by dlmkit and holds {foreign_entry(run_dir) or 'no whole run'}: name another"
            " folder; nothing in it was touched"
        )
    if policy == "refuse":
        raise ValueError(
            f"{run_dir} already holds a run ({_status(run_dir)}): set if_exists=overwrite to replace it,"
            " if_exists=resume to continue it, or choose another name"
        )
    summary = None if policy == "overwrite" else RunSummary.read(run_dir)
    checkpoint = last_checkpoint(run_dir, policy)
    is_kept = checkpoint is not None or (summary is not None and summary.finished)
    if not is_kept and (entry := foreign_entry(run_dir)) is not None:
        raise ValueError(
            f"{run_dir} holds {entry}, which dlmkit did not write: move that away, so that the run in it can be"
            " replaced; nothing was touched"
        )
    return checkpoint


def _status(run_dir: Path) -> str:
    summary = RunSummary.read(run_dir)
    if summary is None:
        return f"without {SUMMARY}"
    return "killed" if summary.status == "running" and is_abandoned(run_dir) else summary.status


def _is_worth_keeping(run_dir: Path) -> bool:
    """Return whether a run has something that another run of the same settings would not have at once."""
    try:
        summary = RunSummary.read(run_dir)
    except ValueError:  # damaged, which says nothing about the rest
        return True
    return has_checkpoint(run_dir) or (summary is not None and summary.finished)


def last_checkpoint(run_dir: Path, policy: str) -> Path | None:
    """Return the checkpoint that a run with this policy resumes from, or ``None`` where it starts from step 0."""
    if policy not in RESUMING:
        return None
    checkpoints = sorted((run_dir / CHECKPOINTS).glob("[!.]*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return checkpoints[-1] if checkpoints else None


@contextlib.contextmanager
def held(run_dir: Path, policy: str) -> Iterator[Path | None]:
    """Hold a run's folder for this process, and give the checkpoint to resume from, if any.

    A run that another process was killed in replacing is put back first. At the end of the block an earlier run is
    deleted if the new one has a checkpoint, and put back otherwise; see `replaced`.

    Raises:
        ValueError: as `claim`, or another process holds the folder; nothing is touched then.
    """
    if not is_replacing(run_dir):
        claim(run_dir, policy)
    with locked(run_dir):
        settle(run_dir)
        checkpoint = claim(run_dir, policy)
        try:
            yield checkpoint
        finally:
            settle(run_dir)


def open_folder(run_dir: Path, marker: Marker, resumed: bool) -> None:
    """Make a folder this run's, with the marker in it; what a run that is not resumed has saved is moved aside."""
    if not resumed and not is_empty(run_dir):
        if _is_worth_keeping(run_dir):
            if not (run_dir / MARKER).is_file():
                marker.write(run_dir)  # a run of version 0.1 had none
            move_aside(run_dir)
        else:
            clear(run_dir)
    if not (run_dir / MARKER).is_file():
        marker.write(run_dir)


def finished_summary(run_dir: Path, num_steps: int) -> RunSummary | None:
    """Return the summary of a run that has nothing left to do, or ``None``.

    Raises:
        ValueError: the run has finished, with fewer steps than it should have now.
    """
    summary = RunSummary.read(run_dir)
    if summary is None or not summary.finished:
        return None
    if summary.steps < num_steps:
        raise ValueError(
            f"{run_dir} has finished its {summary.steps} steps and cannot continue to {num_steps}, since its learning"
            " rate has decayed: start another run with init_from, or set if_exists=overwrite"
        )
    return summary


def read_metrics(run_dir: Path, num_steps: int) -> list[dict[str, str]]:
    """Return the rows of metrics.csv that belong to the first `num_steps` steps, without empty cells."""
    path = run_dir / METRICS
    if num_steps == 0 or not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()  # the process was killed while it wrote this row
    rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(lines)]
    return [row for row in rows if _step_of(row, path) < num_steps]  # rows count steps from 0


def _step_of(row: dict[str, str], path: Path) -> int:
    try:
        return int(row["step"])
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is no table of a run's curves (a row without a step): delete it to go on without earlier curves"
        ) from error


def checkpoint_of(path: Path) -> tuple[Path, Path]:
    """Return (run folder, checkpoint file) for a run's folder or a checkpoint in it.

    Raises:
        ValueError: neither, or the run has not finished.
    """
    if path.is_file() and path.suffix == ".ckpt" and (path.parent.parent / CONFIG).is_file():
        return path.parent.parent, path
    if not (path / CONFIG).is_file():
        raise ValueError(
            f"{path} is neither a run folder (with {CONFIG}) nor a .ckpt file in one: run `dlmkit train` first"
        )
    if not (path / LAST_CHECKPOINT).is_file():
        raise ValueError(
            f"{path} has no {LAST_CHECKPOINT}: the run has not finished; name one of its checkpoints instead"
        )
    return path, path / LAST_CHECKPOINT


def read_parent(path: Path) -> ParentRun:
    """Return the run that `init_from` names: a run's folder or a checkpoint in it.

    Raises:
        ValueError: no such run, or one that has not finished.
    """
    try:
        folder, checkpoint = checkpoint_of(path)
    except ValueError as error:
        raise ValueError(
            f"init_from names {path}, which holds no finished run: train it first (the sweep does)"
        ) from error
    summary = RunSummary.read(folder)
    if summary is None or not summary.finished:
        raise ValueError(f"init_from names {folder}, which has not finished: train it first, or name another run")
    return ParentRun(path, checkpoint, summary.name, summary.total_tokens, summary.total_flops)


def git_commit() -> str | None:
    """Return the commit of the working directory's repository, with "+" when it has uncommitted changes."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if status.strip() else "")
