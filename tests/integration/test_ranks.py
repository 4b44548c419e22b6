"""Two ranks with gloo: the loss means the same at any world size, draw for draw."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from dlmkit.module import DiffusionLM
from laws import parts
from laws.toy_training import assert_same, by_hand, module, trained
from toy_runs import TOKENS, TOY, checkpoint, curve, summary, weights

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")


@pytest.mark.parametrize(
    ("objective", "process", "corruption", "micro_batch_size", "accumulate"),
    [
        ("masked", "absorbing", "independent", 4, 1),
        ("masked", "absorbing", "complementary", 2, 2),
        ("uniform", "uniform", "independent", 1, 4),
        ("autoregressive", "none", "independent", 2, 2),
    ],
)
def test_two_ranks_take_the_step_of_one(objective, process, corruption, micro_batch_size, accumulate):
    """Each rank has other sequences, with other numbers of scored tokens, at the times that one rank draws for them."""
    one, two = (module(objective, process, corruption) for _ in range(2))
    split = trained(two, micro_batch_size, accumulate, num_steps=2, devices=2, strategy="ddp_fork")
    assert_same(split, by_hand(one, num_steps=2))


def test_two_ranks_learn_one_density_of_t():
    """The second step's times, on both ranks, follow the losses of the first on both ranks."""

    def learning() -> DiffusionLM:
        return module("masked", "absorbing", t_sampler=parts.t_sampler("learned", num_bins=4, warmup_draws=2))

    reference = by_hand(learning(), num_steps=2)
    assert_same(trained(learning(), 2, 2, num_steps=2, devices=2, strategy="ddp_fork"), reference)
    with pytest.raises(AssertionError):
        assert_same(by_hand(module("masked", "absorbing"), num_steps=2), reference)


def test_the_command_line_starts_the_other_ranks_itself(tmp_path):
    """A sweep of two runs, each on two processes: the same training and the same bound as on one."""
    sweep = [
        *TOY,
        "family=ar,absorbing",
        "validation.every_steps=1",
        f"budget.tokens={2 * TOKENS}",
        "trainer.accelerator=cpu",
    ]
    for devices in (1, 2):
        command = [sys.executable, "-m", "dlmkit.cli", "train", *sweep, f"trainer.devices={devices}"]
        folder = f"hydra.sweep.dir={tmp_path}/{devices}"
        done = subprocess.run([*command, folder, "hydra.sweep.subdir=${member}", "-m"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("nats/token") == 2  # one line a run, whatever the number of processes
    for family in ("ar", "absorbing"):
        one, two = (summary(tmp_path / str(devices) / family) for devices in (1, 2))
        assert two["val_nll"] == pytest.approx(one["val_nll"], rel=1e-6)
        assert two["tokens_seen"] == one["tokens_seen"]
        assert (two["steps"], two["status"]) == (2, "finished")


@pytest.mark.long
def test_a_network_split_over_two_processes_trains_as_a_whole_one(tmp_path):
    """FSDP2 (on CPUs with gloo): the same losses, gradient norms, weights and bound as one process."""
    times = ["t_sampler=learned", "t_sampler.num_bins=2", "t_sampler.warmup_draws=1"]
    run = [
        *TOY,
        "family=absorbing",
        *times,
        "optimizer.lr=1e-2",
        f"budget.tokens={3 * TOKENS}",
        "trainer.accelerator=cpu",
    ]
    sizes = "data_parallel_size: 2, tensor_parallel_size: 1, save_distributed_checkpoint: false"
    split = f"{{_target_: lightning.pytorch.strategies.ModelParallelStrategy, {sizes}}}"
    for name, options in (("one", []), ("two", ["trainer.devices=2", f"trainer.strategy={split}"])):
        command = [sys.executable, "-m", "dlmkit.cli", "train", *run, *options, f"hydra.run.dir={tmp_path / name}"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, two = tmp_path / "one", tmp_path / "two"
    assert summary(two)["val_nll"] == pytest.approx(summary(one)["val_nll"], rel=1e-5)
    torch.testing.assert_close(weights(two), weights(one), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(checkpoint(two)["parts"], checkpoint(one)["parts"], rtol=1e-3, atol=0)
    for (_, split_norm), (_, norm) in zip(curve(two, "train/grad_norm"), curve(one, "train/grad_norm"), strict=True):
        assert split_norm == pytest.approx(norm, rel=1e-4)
