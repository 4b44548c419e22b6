"""`dlmkit train` in processes of its own, signals at a given step, and the contents of folders."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from toy_runs import TOKENS, TOY, Outcome

HERE = Path(__file__).parent
STARTED: list[subprocess.Popen[str]] = []


class Send(pl.Callback):
    """Sends this process a signal, several times if asked, when a run is at `step` steps and reaches `hook`."""

    def __init__(self, step: int, signum: int, times: int = 1, hook: str = "on_train_batch_start") -> None:
        self.step, self.signum, self.times = step, signum, times
        setattr(self, hook, self._send)

    def _send(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == 0:
            for _ in range(self.times):
                os.kill(os.getpid(), self.signum)
            self.times = 0


class Wait(pl.Callback):
    """Waits, at the start of the batch after `step` steps, for a file to appear."""

    def __init__(self, step: int, file: str) -> None:
        self.step, self.file = step, Path(file)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        while trainer.global_step == self.step and not self.file.exists():
            time.sleep(0.01)


class GrowBlocks(pl.Callback):
    """Doubles the block size after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            pl_module.block_size = 4


def send(step: int, signum: int, **options: Any) -> str:
    """The override that adds a `Send`."""
    more = "".join(f", {key}: {value}" for key, value in options.items())
    return f"+callbacks.send={{_target_: processes.Send, step: {step}, signum: {int(signum)}{more}}}"


def wait(step: int, file: str = "go") -> str:
    """The override that adds a `Wait`."""
    return f"+callbacks.wait={{_target_: processes.Wait, step: {step}, file: {file}}}"


def start(run_dir: str, *overrides: str, steps: int = 2, **environment: str) -> subprocess.Popen[str]:
    """Start the training of a toy in a process of its own."""
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "dlmkit.cli", "train", *TOY, f"hydra.run.dir={run_dir}"]
    process = subprocess.Popen(
        [*command, f"budget.tokens={steps * TOKENS}", *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
        start_new_session=True,
    )
    STARTED.append(process)
    return process


def ended(process: subprocess.Popen[str]) -> Outcome:
    """Wait for a process and return what it did."""
    out, err = process.communicate(timeout=120)
    return Outcome(process.returncode, out, err)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process and wait for its end."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
