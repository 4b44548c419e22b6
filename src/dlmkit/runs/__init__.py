"""Run folders: the record of a run (`RunSummary`), and the files and checkpoints beside it. Never imports torch."""

from dlmkit.runs.agreement import STEPS, Changes, compare
from dlmkit.runs.contents import CHECKPOINTS, CONFIG, LOCK, MARKER, METRICS, REPLACED, Marker, clear
from dlmkit.runs.folder import (
    LAST_CHECKPOINT,
    POLICIES,
    RESUMING,
    STOP_CHECKPOINT,
    ParentRun,
    checkpoint_of,
    claim,
    finished_summary,
    git_commit,
    held,
    last_checkpoint,
    open_folder,
    read_metrics,
    read_parent,
)
from dlmkit.runs.lock import is_abandoned, locked
from dlmkit.runs.replaced import has_checkpoint, is_replacing, settle
from dlmkit.runs.stopping import Stopped, StopSignals, reason
from dlmkit.runs.summary import STATUSES, SUMMARY, RunSummary, Status

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "LAST_CHECKPOINT",
    "LOCK",
    "MARKER",
    "METRICS",
    "POLICIES",
    "REPLACED",
    "RESUMING",
    "STATUSES",
    "STEPS",
    "STOP_CHECKPOINT",
    "SUMMARY",
    "Changes",
    "Marker",
    "ParentRun",
    "RunSummary",
    "Status",
    "StopSignals",
    "Stopped",
    "checkpoint_of",
    "claim",
    "clear",
    "compare",
    "finished_summary",
    "git_commit",
    "has_checkpoint",
    "held",
    "is_abandoned",
    "is_replacing",
    "last_checkpoint",
    "locked",
    "open_folder",
    "read_metrics",
    "read_parent",
    "reason",
    "settle",
]
