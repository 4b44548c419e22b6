"""An earlier run that a new one replaces: kept aside in the folder until the new one has a checkpoint.

The marker tells the stages apart, so that a process may be killed in any of them. It is the last entry to be moved
aside and the first to be moved back: where the marker is not aside, whatever is aside belongs back.
"""

from __future__ import annotations

from pathlib import Path

from dlmkit.runs.contents import CHECKPOINTS, MARKER, REPLACED, clear, own_entries, remove


def has_checkpoint(run_dir: Path) -> bool:
    """Return whether a run has saved a checkpoint."""
    return any((run_dir / CHECKPOINTS).glob("[!.]*.ckpt"))


def is_replacing(run_dir: Path) -> bool:
    """Return whether an earlier run is kept aside in a folder: there, and not where a link leads."""
    aside = run_dir / REPLACED
    return aside.is_dir() and not aside.is_symlink()


def move_aside(run_dir: Path) -> None:
    """Move the run in a folder aside; its marker must be there, and nothing foreign."""
    aside = run_dir / REPLACED
    aside.mkdir()
    for path in sorted(own_entries(run_dir), key=lambda path: path.name == MARKER):
        path.rename(aside / path.name)


def settle(run_dir: Path) -> None:
    """Keep the new run where it has a checkpoint, else the earlier one, which is then back in its place."""
    aside = run_dir / REPLACED
    if not is_replacing(run_dir):
        return
    if (aside / MARKER).is_file():
        if has_checkpoint(run_dir):
            _discard(aside)
            return
        clear(run_dir)
        (aside / MARKER).rename(run_dir / MARKER)
    for path in sorted(aside.iterdir()):
        path.rename(run_dir / path.name)
    aside.rmdir()


def _discard(aside: Path) -> None:
    for path in sorted(aside.iterdir(), key=lambda path: path.name == MARKER):
        remove(path)
    aside.rmdir()
