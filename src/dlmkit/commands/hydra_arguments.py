"""Hydra's view of the command line: its flags, where it reads its arguments, and a line that it writes by itself."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

FLAGS_WITH_VALUE = ("--cfg", "--package", "--config-dir")
PATHS = ("dir", "run_dir", "init_from", "name", "files", "val_files", "cache_dir")
"""Last parts of keys that name a file or a folder."""
FLAGS = ("--multirun", "--cfg", "--resolve", "--package", "--info", "--config-dir", "--hydra-help")  # Hydra's


def home_named(argument: str) -> str:
    """Return an override with the home folder in the place of a leading ~, which no shell expands behind a =.

    In quotes, where Hydra takes it as text, only for keys that name a path.
    """
    key, equals, value = argument.partition("=")
    quote = value[:1] if value[:1] in ("'", '"') else ""
    is_path = not quote or key.rpartition(".")[2] in PATHS
    if not equals or not is_path or not value.startswith(f"{quote}~/"):
        return argument
    return f"{key}={quote}{os.path.expanduser('~')}{value[len(quote) + 1 :]}"


def overrides_first(arguments: list[str]) -> list[str]:
    """Return overrides, then flags with their values: Hydra's parser takes the overrides only in one piece."""
    overrides: list[str] = []
    flags: list[str] = []
    for argument in arguments:
        is_value = bool(flags) and flags[-1] in FLAGS_WITH_VALUE
        (flags if is_value or argument.startswith("-") else overrides).append(argument)
    return [*overrides, *flags]


@contextlib.contextmanager
def command_line(arguments: list[str]) -> Iterator[None]:
    """Set the process's command line, which is where Hydra reads its arguments, and restore it afterwards."""
    before, sys.argv = sys.argv, arguments
    try:
        yield
    finally:
        sys.argv = before


class WithoutHydrasLine(io.TextIOBase):
    """Standard error without the line that Hydra writes before it raises a run's error: the command line prints it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, unless it is that line."""
        return len(text) if text.startswith("Error executing job with overrides:") else self._stream.write(text)

    def flush(self) -> None:
        """Flush standard error."""
        self._stream.flush()

    def isatty(self) -> bool:
        """Return whether standard error is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return the file descriptor of standard error."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of standard error."""
        return self._stream.encoding
