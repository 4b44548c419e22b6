"""Signals that stop a run: it saves a checkpoint first where it can, and may ask Slurm to start the job again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from types import FrameType, TracebackType
from typing import Any, Self

REQUEUE_SIGNAL = signal.SIGUSR1
"""What `sbatch --signal=USR1@SECONDS` sends before a job's time is over."""
INTERACTIVE = ("bash", "interactive")
"""Names that Slurm gives to interactive jobs, which are not requeued."""


class Stopped(KeyboardInterrupt):
    """A run that a signal ended.

    Attributes:
        signum: the signal.
        code: the exit code of a process that it ended, as a shell has it.
    """

    def __init__(self, signum: int, message: str = "") -> None:
        super().__init__(message or f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.code = 128 + signum


def reason(error: BaseException) -> str:
    """Return why a run stopped, in one line; an error that is no message for the user with its class."""
    text = " ".join(str(error).split())
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return text if isinstance(error, Stopped) else "stopped from outside"
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}".removesuffix(": ")


class StopSignals:
    """Handlers of SIGINT, SIGTERM and, in a Slurm job, SIGUSR1, for the time of a run.

    The first signal is noted where `can_save` is true, for the training to save and stop when the optimizer step is
    done, and raises `Stopped` elsewhere. A second SIGINT raises it everywhere. At the end of a `with` block that
    SIGUSR1 stopped, the Slurm job is put back into the queue.

    Args:
        requeue: whether a job that is started again would continue this run.
        rank_zero: whether this is the process that asks for it.

    Attributes:
        requested: the first signal that came, or ``None``.
        can_save: whether the run will look at `requested` soon.
    """

    def __init__(self, requeue: bool, rank_zero: bool) -> None:
        self.requeue = requeue and rank_zero
        self.requested: int | None = None
        self.can_save = False
        self._pid = os.getpid()
        self._signals = [signal.SIGINT, signal.SIGTERM, *([REQUEUE_SIGNAL] if slurm_job() is not None else [])]
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others cannot have handlers
            heard = [signum for signum in self._signals if signal.getsignal(signum) is not signal.SIG_IGN]
            self._before = {signum: signal.getsignal(signum) for signum in heard}
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if error is not None and self.requested == REQUEUE_SIGNAL and self.requeue:
            job = slurm_job()
            assert job is not None
            requeue_job(job)

    def install(self) -> None:
        """Put the handlers in place, also after Lightning has put its own there."""
        for signum in self._before:
            signal.signal(signum, self._handle)

    def check(self) -> None:
        """Stop here if a signal came.

        Raises:
            Stopped: it did.
        """
        if self.requested is not None:
            raise Stopped(self.requested)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a process that loads data and was forked with these handlers
            _leave_to_parent(signum)
            return
        is_second = self.requested is not None
        self.requested = signum if self.requested is None else self.requested
        if not self.can_save or (is_second and signum == signal.SIGINT):
            raise Stopped(self.requested)


def _leave_to_parent(signum: int) -> None:
    """End on SIGTERM, which the parent sends at its end; on others the parent decides what to do."""
    if signum == signal.SIGTERM:
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)


def slurm_job() -> str | None:
    """Return the number of the Slurm job that this process is part of, or ``None`` outside one that may be requeued."""
    if os.environ.get("SLURM_JOB_NAME") in INTERACTIVE:
        return None
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def requeue_job(job: str) -> None:
    """Put a Slurm job back into the queue.

    Raises:
        ValueError: Slurm's command is not there.
    """
    if shutil.which("scontrol") is None:
        raise ValueError(f"scontrol was not found, so job {job} does not start again by itself: submit it once more")
    subprocess.run(["scontrol", "requeue", job], check=True)
