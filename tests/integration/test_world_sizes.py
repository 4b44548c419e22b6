"""A run goes on at another number of processes: what they saw, and what comes out, is what one process does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dlmkit.checkpoints.shards import read_whole
from ranks import train_on_ranks
from toy_runs import TOKENS, TOY, curve, dlmkit, stop_at, summary

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")

STEPS = 8
LEARNED = ["t_sampler=learned", "t_sampler.num_bins=2", "t_sampler.warmup_draws=1"]
RUN = [*TOY, "family=absorbing", *LEARNED, "optimizer.lr=1e-2", f"budget.tokens={STEPS * TOKENS}", "logger=none"]
RESUMED = [*RUN, "if_exists=resume"]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A whole run, and one that stopped after its fifth step, each on one process; and one that two processes began."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("runs"))
        assert dlmkit("train", *RUN, "hydra.run.dir=whole").code == 0
        assert dlmkit("train", *RUN, "hydra.run.dir=of_one", stop_at(5)).code == 130
        train_on_ranks(*RUN, "strategy=fsdp2", "hydra.run.dir=of_two", stop_at(5), code=130)
        yield Path.cwd()


def assert_same_end(run: Path, whole: Path = Path("whole")) -> None:
    """The same losses at every step, weights, optimizer states and bound, to float32 rounding."""
    for name in ("train/loss", "train/nll", "train/grad_norm", "val/nll"):
        for (step, value), (expected_step, expected) in zip(curve(run, name), curve(whole, name), strict=True):
            assert step == expected_step
            # A logged loss is that of rank zero's micro-batch; the gradient and the bound are those of all.
            assert name in ("train/loss", "train/nll") or value == pytest.approx(expected, rel=2e-4)
    mine, other = (read_whole(path / "checkpoints/last.ckpt") for path in (run, whole))
    torch.testing.assert_close(mine["state_dict"], other["state_dict"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mine["optimizer_states"], other["optimizer_states"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mine["parts"], other["parts"], rtol=1e-3, atol=0)
    assert summary(run)["val_nll"] == pytest.approx(summary(whole)["val_nll"], rel=1e-5)


def copied(run: str, name: str) -> Path:
    shutil.copytree(run, name)
    return Path(name)


def test_two_processes_leave_a_checkpoint_in_shards() -> None:
    newest = Path("of_two/checkpoints/step=4.ckpt")
    (shards,) = newest.parent.glob("step=4.shards-*")
    assert len(list(shards.iterdir())) == 2
    assert sorted(path.name for path in newest.parent.iterdir()) == [newest.name, shards.name]  # older ones are gone
    content = read_whole(newest)
    assert content["global_step"] == 4
    whole = read_whole(Path("of_one/checkpoints/step=4.ckpt"))
    torch.testing.assert_close(content["state_dict"], whole["state_dict"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(content["optimizer_states"], whole["optimizer_states"], rtol=1e-3, atol=1e-5)


def test_begun_on_two_and_ended_on_one() -> None:
    run = copied("of_two", "two_one")
    outcome = dlmkit("train", *RESUMED, f"hydra.run.dir={run}")
    assert outcome.code == 0, outcome.err
    assert_same_end(run)


def test_begun_on_one_and_ended_on_two() -> None:
    run = copied("of_one", "one_two")
    train_on_ranks(*RESUMED, "strategy=fsdp2", f"hydra.run.dir={run}")
    assert_same_end(run)


def test_begun_and_ended_on_two_with_shards_first_and_one_file_then() -> None:
    """What a killed save left is deleted."""
    run = copied("of_two", "two_two")
    orphan = run / f"checkpoints/step=6.shards-{32 * 'a'}"
    orphan.mkdir()
    one_file = "trainer.strategy.save_distributed_checkpoint=false"
    train_on_ranks(*RESUMED, "strategy=fsdp2", one_file, f"hydra.run.dir={run}")
    assert not orphan.exists()
    assert [path.stem for path in orphan.parent.glob("*.shards-*")] == ["step=4"]
    assert_same_end(run)


def test_a_damaged_shard_is_named_and_the_checkpoint_before_is_used() -> None:
    run = copied("of_two", "damaged")
    shutil.copy("of_one/checkpoints/step=4.ckpt", run / "checkpoints/step=3.ckpt")  # older, and whole
    os.utime(run / "checkpoints/step=3.ckpt", (0, 0))
    (shards,) = run.glob("checkpoints/step=4.shards-*")
    flip_bit(shards / "00001.safetensors", 1000)
    outcome = dlmkit("train", *RESUMED, f"hydra.run.dir={run}")
    assert outcome.code == 0, outcome.err
    (line,) = [line for line in outcome.err.splitlines() if "step=4.ckpt is damaged" in line]
    assert line.endswith("step=3.ckpt")
    assert_same_end(run)


def flip_bit(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
