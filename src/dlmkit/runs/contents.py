"""What a run folder holds: the marker that says whose folder it is, and the names of everything that a run writes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dlmkit.files import write_json
from dlmkit.runs.summary import SUMMARY, read_json

CONFIG = "config.yaml"
METRICS = "metrics.csv"
MARKER = ".dlmkit-run"
LOCK = ".dlmkit-lock"
REPLACED = ".dlmkit-replaced"
CHECKPOINTS = "checkpoints"

KEPT = (LOCK, REPLACED)
"""Entries that outlast the run that is cleared: they belong to the next one."""

FILES = (MARKER, CONFIG, SUMMARY, METRICS, "report.html")
FOLDERS = {
    CHECKPOINTS: r"[^/]*\.(ckpt|shards-[0-9a-f]{32})",
    "samples": r"step_\d+\.json",
    "tensorboard": r"events\.out\.tfevents\..*|hparams\.yaml",
    "tokenizer": r"(dlmkit_)?tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab.*|merges\.txt|.*\.model"
    r"|chat_template.*|additional_chat_templates",
    "wandb": r".*",
    ".hydra": r".*\.yaml",
}
"""Folder -> the names that a run writes into it, as a regular expression; a folder inside one is as its name."""

PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{32}")
"""A file that was being written when its process ended; see dlmkit.files."""


@dataclass(frozen=True)
class Marker:
    """What the marker file of a run folder says.

    Attributes:
        dlmkit_version: that made the folder.
        created: when, in UTC (ISO 8601).
        initial: dotted configuration keys that training changes in config.yaml -> their values at the start.
        version: of the marker's form.
    """

    dlmkit_version: str
    created: str
    initial: dict[str, Any] = field(default_factory=dict)
    version: int = 1

    @classmethod
    def new(cls, dlmkit_version: str, initial: dict[str, Any]) -> Marker:
        """Return the marker of a folder that is made now."""
        return cls(dlmkit_version, datetime.now(UTC).isoformat(timespec="seconds"), initial)

    def write(self, run_dir: Path) -> None:
        """Write the marker in one step."""
        write_json(run_dir / MARKER, asdict(self))

    @classmethod
    def read(cls, run_dir: Path) -> Marker | None:
        """Return a folder's marker, or ``None`` where it has none.

        Raises:
            ValueError: it is damaged.
        """
        file = run_dir / MARKER
        if not file.is_file():
            return None
        content = read_json(file, "delete that file if the folder is a run's")
        keys = ("dlmkit_version", "created", "initial", "version")
        if not isinstance(content, dict) or not set(keys) <= content.keys() or not isinstance(content["initial"], dict):
            raise ValueError(f"{file} is damaged: delete that file if the folder is a run's")
        return cls(**{key: content[key] for key in keys})


def is_empty(run_dir: Path) -> bool:
    """Return whether a folder is missing or holds nothing but a lock."""
    return not any(path.name not in KEPT for path in _entries(run_dir))


def is_run(run_dir: Path) -> bool:
    """Return whether dlmkit made a folder: it has the marker or, of version 0.1, exactly what a run writes."""
    if (run_dir / MARKER).is_file():
        return True
    return (run_dir / CONFIG).is_file() and (run_dir / SUMMARY).is_file() and foreign_entry(run_dir) is None


def foreign_entry(run_dir: Path) -> str | None:
    """Return the name of an entry that no run writes, as a path below the folder, or ``None``."""
    for path in _entries(run_dir):
        if path.is_dir() and not path.is_symlink() and path.name in FOLDERS:
            inside = next((one for one in sorted(path.iterdir()) if not _matches(FOLDERS[path.name], one.name)), None)
            if inside is not None:
                return inside.relative_to(run_dir).as_posix()
        elif path.is_symlink() if path.name in KEPT else _completed(path.name) not in FILES:
            return path.name
    return None


def own_entries(run_dir: Path) -> Iterator[Path]:
    """Give what a run wrote: all entries but the lock and an earlier run that is kept aside.

    To be called where `foreign_entry` is ``None``.
    """
    yield from (path for path in _entries(run_dir) if path.name not in KEPT)


def clear(run_dir: Path) -> None:
    """Delete what a run wrote into its folder; anything else stays."""
    for path in own_entries(run_dir):
        if path.is_dir() and not path.is_symlink():
            _clear_folder(path)
        elif _completed(path.name) in FILES:
            path.unlink()


def _clear_folder(folder: Path) -> None:
    pattern = FOLDERS.get(folder.name)
    if pattern is None:
        return
    for path in folder.iterdir():
        if _matches(pattern, path.name):
            remove(path)
    if not any(folder.iterdir()):
        folder.rmdir()


def remove(path: Path) -> None:
    """Delete a file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(pattern, _completed(name)) is not None


def _completed(name: str) -> str:
    """Return the name that a file was to have, for one that was being written."""
    partial = PARTIAL.fullmatch(name)
    return partial[1] if partial else name


def _entries(run_dir: Path) -> list[Path]:
    return sorted(run_dir.iterdir()) if run_dir.is_dir() else []
