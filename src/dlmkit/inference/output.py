"""The output of a file of prompts: JSON lines that a killed command goes on with."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dlmkit.files import write_json
from dlmkit.ranges import shown

SUFFIX = ".settings.json"
MADE_BY = "dlmkit sample"
MARK = "made_by"

Settings = Mapping[str, Any]
"""What decides the texts, by dotted names; JSON values."""


def settings_file(out: Path) -> Path:
    """Return where the settings of an output are, which also says that it is one: beside it."""
    return out.with_name(out.name + SUFFIX)


class Output:
    """The lines of an output, of which some may be there.

    Attributes:
        num_lines: lines that are whole and on the disk.
    """

    def __init__(self, file: IO[bytes], num_lines: int) -> None:
        self._file = file
        self.num_lines = num_lines

    def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write lines and see to it that they are on the disk."""
        self._file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.num_lines += len(lines)


@contextmanager
def opened(out: Path, settings: Settings, expected: Iterator[Mapping[str, Any]]) -> Iterator[Output]:
    """Give the output to append to, which no other process writes to meanwhile.

    A last line that is not whole is dropped. Nothing that this command did not write is ever changed.

    Args:
        out: a file that does not exist yet, or one that was made under the same settings.
        settings: of this command.
        expected: the keys and values by which each line of the whole output is known, in order.

    Raises:
        ValueError: a file of somebody else, one that was made under other settings or changed since, or one that
            another process writes to.
    """
    if out.exists() and not out.is_file():
        raise ValueError(f"{str(out)!r} is no file: name one, or leave --out out to print the lines")
    _refuse_foreign(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("ab+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{str(out)!r} is being written by another process: wait for it, or name another"
            ) from error
        _refuse_foreign(out)
        if file.tell():  # at its end
            _refuse_others(out, settings)
            num_lines = _whole_lines(file, out, expected)
        else:
            write_json(settings_file(out), {MARK: MADE_BY, **settings})
            num_lines = 0
        yield Output(file, num_lines)


def _refuse_foreign(out: Path) -> None:
    """Raise ValueError unless the output is empty or ours; and so for the file of its settings."""
    beside = settings_file(out)
    if beside.exists():
        if _read(beside) is None:
            raise ValueError(f"{str(beside)!r} is no file of settings: move it away, or name another --out")
    elif out.exists() and out.stat().st_size:
        raise ValueError(
            f"{str(out)!r} is there and no output of dlmkit sample, which has {beside.name} beside it: name another"
            " --out"
        )


def _read(path: Path) -> dict[str, Any] | None:
    """Return the settings in a file, or ``None`` where it has none of ours."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, IsADirectoryError):
        return None
    return content if isinstance(content, dict) and content.get(MARK) == MADE_BY else None


def _refuse_others(out: Path, settings: Settings) -> None:
    made = {key: value for key, value in (_read(settings_file(out)) or {}).items() if key != MARK}
    asked = json.loads(json.dumps(settings))
    differing = [key for key in {**made, **asked} if made.get(key) != asked.get(key)]
    if differing:
        changes = ", ".join(f"{key} {shown(made.get(key))}, not {shown(asked.get(key))}" for key in differing)
        raise ValueError(f"{str(out)!r} was made with {changes}: give the same settings, or name another --out")


def _whole_lines(file: IO[bytes], out: Path, expected: Iterator[Mapping[str, Any]]) -> int:
    """Return the number of lines, each compared with what is expected there; what follows the last one is cut off."""
    file.seek(0)
    num_lines = end = 0
    for line in file:
        if not line.endswith(b"\n"):
            file.truncate(end)
            break
        known = next(expected, None)
        if known is None or not _is_line_of(line, known):
            raise ValueError(
                f"{str(out)!r} line {num_lines + 1} is not what this command writes there: the file was changed; move"
                " it away, or name another --out"
            )
        num_lines, end = num_lines + 1, end + len(line)
    file.seek(0, os.SEEK_END)
    return num_lines


def _is_line_of(line: bytes, known: Mapping[str, Any]) -> bool:
    try:
        content = json.loads(line)
    except ValueError:
        return False
    return isinstance(content, dict) and all(content.get(key) == value for key, value in known.items())
