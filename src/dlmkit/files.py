"""Atomic writes: a reader sees the old file or the new one, never a part of either."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step, with its folder where that is missing; a failure leaves the old file and no other.

    The content is flushed to the disk before the file is renamed, so that a crash of the machine leaves no empty file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) in one step; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, content: Any, allow_nan: bool = True) -> None:
    """Write a JSON file in one step, indented and with its letters as they are; see `write_bytes`.

    Args:
        path: where it goes.
        content: what json.dumps takes.
        allow_nan: whether NaN and infinities may stand in it, which strict JSON has no form for.

    Raises:
        ValueError: `content` has such a number and it may not; nothing is written.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=allow_nan) + "\n")
