"""Several ranks of one run, forked from the test with torchrun's variables: everything is imported already."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from toy_runs import dlmkit


def on_ranks(work: Callable[[int], int | None], world_size: int = 2) -> None:
    """Call `work` with its rank in that many processes, and fail where one of them does, with what it printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / str(rank) for rank in range(world_size)]
        children = [_forked(work, rank, world_size, port, output) for rank, output in enumerate(outputs)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        printed = "\n".join(f"rank {rank}: {out.read_text()}" for rank, out in enumerate(outputs))
        assert not any(codes), f"exit codes {codes}\n{printed}"


def train_on_ranks(*arguments: str, code: int = 0, world_size: int = 2) -> None:
    """Run `dlmkit train` on that many ranks; rank zero must end with an exit code, the others with that or 0."""

    def work(rank: int) -> int:
        outcome = dlmkit("train", f"trainer.devices={world_size}", "trainer.accelerator=cpu", *arguments)
        print(outcome.err, flush=True)
        return int(outcome.code not in ((code,) if rank == 0 else (code, 0)))

    on_ranks(work, world_size)


def _forked(work: Callable[[int], int | None], rank: int, world_size: int, port: int, output: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 70
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file  # in the place of pytest's
        faulthandler.enable(file, all_threads=False)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(world_size), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        try:
            code = work(rank) or 0
        except BaseException:  # noqa: BLE001  # the parent reads it
            traceback.print_exc()
        finally:
            file.flush()
            os._exit(code)
