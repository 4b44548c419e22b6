"""Run folders: the record of a run (`RunSummary`), and the files and checkpoints beside it. Never imports torch."""

from dlmkit.runs.folder import (
    CONFIG,
    LAST_CHECKPOINT,
    METRICS,
    POLICIES,
    ParentRun,
    checkpoint_of,
    claim,
    clear,
    finished_summary,
    git_commit,
    last_checkpoint,
    read_metrics,
    read_parent,
)
from dlmkit.runs.summary import STATUSES, SUMMARY, RunSummary, Status

__all__ = [
    "CONFIG",
    "LAST_CHECKPOINT",
    "METRICS",
    "POLICIES",
    "STATUSES",
    "SUMMARY",
    "ParentRun",
    "RunSummary",
    "Status",
    "checkpoint_of",
    "claim",
    "clear",
    "finished_summary",
    "git_commit",
    "last_checkpoint",
    "read_metrics",
    "read_parent",
]
