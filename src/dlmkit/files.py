"""Atomic writes: a reader sees the old file or the new one, never a part of either."""

from __future__ import annotations

import errno
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a disk that takes no more, or not that much from this user or process."""

PARTIAL = re.compile(r"\..+\.[0-9a-f]{32}")
"""Names of files that `replacing` writes to."""


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write to, which takes the place of `path` in one step when the block ends without an error.

    It lies beside `path`, on the same file system. It is flushed to the disk before it is renamed, and its folder
    after, so that a crash of the machine leaves the old file or the new one. A failure leaves the old file alone.
    A device or a pipe (/dev/stdout) is never replaced: it is written to.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        with path.open("wb") as file:
            yield file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        if error.filename == str(partial):
            error.filename = str(path)  # which is the name that a user knows
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def full_disk_explained(place: Path) -> Iterator[None]:
    """Turn the error of a full disk into a line; `place` is named where the error has no file.

    Raises:
        ValueError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        where = error.filename or place
        raise ValueError(
            f"{where} could not be written ({error.strerror}): make room, then continue with if_exists=resume"
        ) from error


def remove_partials(folder: Path) -> None:
    """Remove what processes that were killed inside `replacing` left in a folder and below, where none runs now."""
    for path in folder.rglob(".*"):
        if PARTIAL.fullmatch(path.name):
            path.unlink()


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step, with its folder where that is missing; see `replacing`."""
    with replacing(path) as file:
        file.write(content)


def overwrite_bytes(path: Path, content: bytes) -> None:
    """Write over an existing file in its place, which takes no more room on a disk that has none left."""
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


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
    write_text(path, json_text(content, allow_nan))


def json_text(content: Any, allow_nan: bool = True) -> str:
    """Return JSON as `write_json` writes it."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=allow_nan) + "\n"
