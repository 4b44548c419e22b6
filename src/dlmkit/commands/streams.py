"""Standard output and error that may be closed, full, of another encoding, or read by nobody."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TypeGuard

from dlmkit.files import DISK_FULL

BROKEN_PIPE = 141
"""Exit code where the reader of standard output has gone, as shells have it: 128 + SIGPIPE."""


def prepare_streams() -> None:
    """Let closed streams lead nowhere, and escape letters that the encoding of a stream lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for the life of the process)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_lost_output(error: BaseException) -> TypeGuard[OSError]:
    """Return whether standard output takes no more; from then on it leads nowhere."""
    lost = isinstance(error, OSError) and error.filename is None and error.errno in (*DISK_FULL, errno.EPIPE)
    if lost:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # so that the end of the process, which flushes it, does not fail
        os.close(nowhere)
    return lost
