"""The loop around a step reads no value of a tensor, which on a GPU is to wait for it, but where a step is logged."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from toy_runs import trained

READS: dict[int, list[str]] = {}
"""Optimizer steps done before a batch -> the operators that read a value in it."""


class Log(TorchDispatchMode):
    """Notes what turns a tensor into a number of the program."""

    def __init__(self, reads: list[str]) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "is_nonzero", "equal"):
            self.reads.append(str(func))
        return func(*args, **(kwargs or {}))


class LogReads(pl.Callback):
    """Logs the operators of each batch."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        READS[trainer.global_step] = []
        self.log = Log(READS[trainer.global_step])
        self.log.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        self.log.__exit__(None, None, None)


@pytest.mark.parametrize("optimizer", ["optimizer.fused=true", "trainer.gradient_clip_val=null"])
def test_nothing_is_read_between_logged_steps(optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uniform noise, whose objective reads none either."""
    monkeypatch.setitem(sys.modules, "test_waits", sys.modules[__name__])
    READS.clear()
    options = [
        "family=uniform",
        "trainer.log_every_n_steps=3",
        "validation.every_steps=100",
        *filter(None, [optimizer]),
    ]
    trained(str(tmp_path / "run"), *options, "+callbacks.reads={_target_: test_waits.LogReads}", steps=6)
    assert READS[0] == READS[1] == READS[3] == READS[4] == []


def test_a_read_is_noted() -> None:
    reads: list[str] = []
    with Log(reads):
        float(torch.ones(()) + 1)
    assert reads == ["aten._local_scalar_dense.default"]
