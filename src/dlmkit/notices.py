"""One line on standard error for what happened without being asked for, such as a cache that is rebuilt."""

from __future__ import annotations

import contextlib
import sys

from dlmkit.ranks import is_rank_zero


def notice(line: str) -> None:
    """Print a line, from one process of a run."""
    if is_rank_zero():
        with contextlib.suppress(BrokenPipeError):  # nobody reads it
            sys.stderr.write(f"dlmkit: {line}\n")
