"""The folder of a run: whether it is free, where its checkpoints are, and what another run takes from it."""

from __future__ import annotations

import csv
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from dlmkit.runs.summary import RunSummary

CONFIG = "config.yaml"
METRICS = "metrics.csv"
LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"
POLICIES = ("refuse", "overwrite", "resume")


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
    """Check that `run_dir` may be used for a run, and return the checkpoint to resume from, if any.

    With "resume", a run that stopped before its first checkpoint starts over.

    Args:
        run_dir: the run's folder.
        policy: what to do with a folder in use: "refuse", "overwrite" (delete it) or "resume".

    Raises:
        ValueError: the folder is in use and the policy is "refuse".
    """
    if policy not in POLICIES:
        raise ValueError(f"if_exists {policy!r} is unknown: choose one of {', '.join(POLICIES)}")
    summary = None if policy == "overwrite" else RunSummary.read(run_dir)
    if summary is None:
        return None
    if policy == "refuse":
        raise ValueError(
            f"{run_dir} already holds a run ({summary.status}): set if_exists=overwrite to replace it,"
            " if_exists=resume to continue it, or choose another name"
        )
    return last_checkpoint(run_dir, policy)


def last_checkpoint(run_dir: Path, policy: str) -> Path | None:
    """Return the checkpoint that a run with this policy resumes from, or ``None`` where it starts from step 0."""
    if policy != "resume":
        return None
    checkpoints = sorted((run_dir / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    return checkpoints[-1] if checkpoints else None


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
    with path.open(newline="") as file:
        rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    return [row for row in rows if _step_of(row, path) < num_steps]  # rows count steps from 0


def _step_of(row: dict[str, str], path: Path) -> int:
    try:
        return int(row["step"])
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is no table of a run's curves (a row without a step): delete it to go on without earlier curves"
        ) from error


def clear(run_dir: Path) -> None:
    """Delete what a run's folder holds."""
    for path in run_dir.iterdir() if run_dir.is_dir() else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


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
