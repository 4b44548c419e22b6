"""One `dlmkit train` in a process of its own, with a limit on time and memory: whatever comes of it is a result."""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

SECONDS = 60.0
MEMORY = 16 * 2**30
"""Bytes of address space; torch alone takes some."""

CRASH = 70
"""Exit code of a traceback."""


@dataclass(frozen=True)
class Result:
    """What came of a command.

    Attributes:
        overrides: what was typed.
        code: exit code; ``None`` where it ran out of time.
        err: standard error.
    """

    overrides: tuple[str, ...]
    code: int | None
    err: str

    @property
    def kind(self) -> str:
        """ "run", "refused" (one line, exit code 2), "time" or "fault"."""
        if self.code is None:
            return "time"
        if self.code == 0:
            return "run"
        lines = self.err.splitlines()
        one_line = len(lines) >= 1 and lines[-1].startswith("dlmkit train: ") and "Traceback" not in self.err
        announced = all("runs/x: " in line or line.startswith("dlmkit: ") for line in lines[:-1])
        return "refused" if self.code == 2 and one_line and announced else "fault"


def attempt(
    overrides: list[str], seconds: float = SECONDS, prepare: Callable[[Path], None] = lambda folder: None
) -> Result:
    """Train one step with these overrides, in a new folder that `prepare` may write into."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        prepare(Path(folder))
        child = os.fork()
        if child == 0:
            _run(overrides, Path(folder), output.fileno())
        code = _wait(child, seconds)
        output.seek(0)
        err = output.read().decode(errors="replace")
    return Result(tuple(overrides), code, err)


def _run(overrides: list[str], folder: Path, output: int) -> NoReturn:
    """Run the command in this process and end it."""
    os.setsid()  # a process group, to end together with its workers
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # not those that pytest has put in their place
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        from dlmkit.cli import main

        code = main(["train", "hydra.run.dir=runs/x", "budget.tokens=32", *overrides])
    except SystemExit as stop:
        code = int(stop.code or 0)
    except Exception:  # noqa: BLE001 (a traceback is a result)
        traceback.print_exc()
        code = CRASH
    finally:
        sys.stderr.flush()
    os._exit(code)


def _wait(child: int, seconds: float) -> int | None:
    """Return a child's exit code (negative: the signal that ended it), or ``None`` after ending it in the end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
