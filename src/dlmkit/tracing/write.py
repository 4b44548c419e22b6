"""A trace as a file: JSON or the page, by the name's ending."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dlmkit.files import write_bytes
from dlmkit.tracing.page import page
from dlmkit.tracing.record import Trace

FORMS: dict[str, Callable[[Trace], str]] = {".json": Trace.to_json, ".html": page}


def check_path(path: Path) -> None:
    """Check the name before anything is sampled.

    Raises:
        ValueError: another ending than .json or .html, or a folder.
    """
    if path.suffix.lower() not in FORMS:
        raise ValueError(f"trace file {str(path)!r} is neither .json nor .html: name one that ends in either")
    if path.is_dir():
        raise ValueError(f"trace file {str(path)!r} is a folder: name a file in it")


def write_trace(trace: Trace, path: Path) -> None:
    """Write the trace in one step: a reader sees the whole file, or the one before; a link stays.

    Raises:
        ValueError: as for `check_path`, or the place cannot be written to.
    """
    check_path(path)
    text = FORMS[path.suffix.lower()](trace)
    try:
        write_bytes(path.resolve(), text.encode("utf-8", "backslashreplace"))  # a lone surrogate, as JSON writes it
    except OSError as error:
        raise ValueError(
            f"trace file {str(path)!r} cannot be written ({error.strerror}): name another place"
        ) from error
