"""Two processes of one run, killed together or one alone, and resumed: copies of the network, and one in shards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from kills import differences

from toy_runs import TOKENS, TOY

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")

SHARDED = "strategy=fsdp2"
STEPS = 8


def start(run: Path, strategy: str) -> subprocess.Popen[str]:
    learned = ["t_sampler=learned", "t_sampler.num_bins=2", "t_sampler.warmup_draws=1"]
    devices = ["trainer.accelerator=cpu", "trainer.devices=2", strategy, "logger=none", "callbacks=[checkpoint,lr]"]
    where = [f"hydra.run.dir={run}", f"budget.tokens={STEPS * TOKENS}", "if_exists=resume"]
    command = [sys.executable, "-m", "dlmkit.cli", "train", *TOY, "family=absorbing", *learned, *devices, *where]
    return subprocess.Popen(
        [part for part in command if not part.startswith("callbacks.samples")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(run: Path, strategy: str) -> None:
    process = start(run, strategy)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["trainer.strategy=ddp", SHARDED], ids=["copies", "shards"])
def test_two_ranks_end_as_if_they_had_been_left_alone(tmp_path: Path, strategy: str) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finish(whole, strategy)
    process = start(parts, strategy)
    while not (parts / "checkpoints/step=4.ckpt").is_file():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (parts / "checkpoints/last.ckpt").exists()
    finish(parts, strategy)
    assert differences(parts, whole) == []
