"""The lock of a run folder: one process at a time writes into it. A lock whose process has ended does not count."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import typing
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from dlmkit.runs.contents import LOCK

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
ENDED = ("Z", "X")
"""States of processes in /proc that have ended."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        pid: its number.
        host: name of its machine.
        boot: which start of that machine's system, or "" where that is unknown.
        started: when the process began, in clock ticks after that start, or 0 where that is unknown.
        job: its Slurm job, with the number of times that it was requeued, or "".
    """

    pid: int
    host: str
    boot: str
    started: int
    job: str

    @classmethod
    def here(cls) -> Holder:
        """Return this process."""
        boot = BOOT_ID.read_text().strip() if BOOT_ID.is_file() else ""
        job = os.environ.get("SLURM_JOB_ID", "")
        restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
        return cls(os.getpid(), socket.gethostname(), boot, _started(os.getpid()), f"{job}/{restarts}" if job else "")

    @property
    def alive(self) -> bool:
        """Whether the process may still be running; on another machine only a requeue of its own job rules that out."""
        here = Holder.here()
        if self.host != here.host:
            return not self._is_requeued_as(here)
        if self.boot != here.boot:
            return False
        return _exists(self.pid) and _started(self.pid) == self.started

    def _is_requeued_as(self, here: Holder) -> bool:
        (job, _, restarts), (own_job, _, own_restarts) = self.job.partition("/"), here.job.partition("/")
        return bool(job) and job == own_job and int(restarts) < int(own_restarts)


def holder_of(run_dir: Path) -> Holder | None:
    """Return what the lock of a folder says, or ``None`` without a lock or with one that was never completed."""
    try:
        return _parse((run_dir / LOCK).read_text(errors="replace"))
    except FileNotFoundError:
        return None


def is_abandoned(run_dir: Path) -> bool:
    """Return whether the process that a run was written by was killed: its lock is there, or was taken over from it."""
    holder = holder_of(run_dir)
    return holder is not None and (not holder.alive or holder == Holder.here())


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold a folder's lock, with the folder made where it is missing.

    Raises:
        ValueError: another process holds it, or the folder cannot be written to.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        own = _take(run_dir)
    except OSError as error:
        raise ValueError(f"{run_dir} cannot be written to ({error.strerror}): choose another folder") from error
    try:
        yield
    finally:
        if holder_of(run_dir) == own:
            (run_dir / LOCK).unlink()


def _take(run_dir: Path) -> Holder:
    own = Holder.here()
    with _alone(run_dir / LOCK) as file:
        holder = _parse(file.read())
        if holder is not None and holder.alive:
            raise ValueError(
                f"{run_dir} is in use by process {holder.pid} on {holder.host}: wait for it, or name another folder; if"
                f" that process has ended, delete {run_dir / LOCK}"
            )
        file.seek(0)
        file.truncate()
        file.write(json.dumps(asdict(own)))
        file.flush()
        os.fsync(file.fileno())
    return own


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[IO[str]]:
    """Open a file that no other process looks at meanwhile, which a check and a write in two steps need."""
    while True:
        with open(path, "a+", errors="replace", opener=_without_links) as file:
            with contextlib.suppress(OSError):  # a file system without such locks: then the two steps are not one
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(path, file):
                file.seek(0)
                yield file
                return


def _without_links(path: str, flags: int) -> int:
    """Open a file, never the one that a link in its place names: a foreign folder could name any file of the user's."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _is_at(path: Path, file: IO[str]) -> bool:
    """Return whether `path` still is that file: its holder may have deleted it before it was free."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _parse(text: str) -> Holder | None:
    try:
        holder = Holder(**json.loads(text))
    except (json.JSONDecodeError, TypeError, RecursionError):  # its process ended before it had written it
        return None
    kinds = typing.get_type_hints(Holder)
    fits = all(type(value) is kinds[name] for name, value in asdict(holder).items())
    return holder if fits and 0 < holder.pid < 2**31 else None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _started(pid: int) -> int:
    """Return when a process began, in clock ticks after the system's start; 0 where /proc does not have it.

    One that has ended and whose parent has not asked how (a zombie) counts as ended: -1.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return -1 if fields[0] in ENDED else int(fields[19])
