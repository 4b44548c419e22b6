"""Runs on several devices: how the other processes of one run are started."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.hydra_config import HydraConfig

LAUNCH_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
"""What Lightning's launcher leaves in the environment of the process that it started others from."""


@contextmanager
def relaunch_as(arguments: list[str]) -> Iterator[None]:
    """Let Lightning start the other processes of one run with `arguments`, and restore everything for the next run.

    Lightning repeats the command line of this process, with changes for Hydra that have no notion of subcommands or of
    the runs of a sweep. So Hydra is hidden from it, and the command line is that of the one run.
    """
    argv, hydra = sys.argv, HydraConfig.instance().cfg
    before = {name: os.environ.get(name) for name in LAUNCH_VARIABLES}
    sys.argv, HydraConfig.instance().cfg = arguments, None
    try:
        yield
    finally:
        sys.argv, HydraConfig.instance().cfg = argv, hydra
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _leave_group()


def quoted(text: str) -> str:
    """Return a text as one value of Hydra's override grammar, whatever stands in it."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)  # a quote needs a backslash, and those before it count double
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{trailing * chr(92)}'"


def _leave_group() -> None:
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
