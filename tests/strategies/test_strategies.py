"""Which strategies a run may have, and what their words mean."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from omegaconf import OmegaConf

from dlmkit.build import build_strategy
from dlmkit.config import check_values, compose
from dlmkit.config.composition import micro_size
from dlmkit.strategies import check_strategy
from dlmkit.strategies.sharded import ShardedStrategy
from toy_runs import train


def built(*overrides: str, devices: int = 4) -> pl.Trainer:
    config = compose([*overrides, f"trainer.devices={devices}"], Path("run"))
    check_values(config)
    strategy = build_strategy(OmegaConf.to_container(config.trainer, resolve=True)["strategy"])
    return pl.Trainer(accelerator="cpu", devices=devices, strategy=strategy, logger=False, enable_checkpointing=False)


@pytest.mark.parametrize(
    ("overrides", "sizes"),
    [
        (["strategy=fsdp2"], (4, 1)),
        (["strategy=fsdp2", "trainer.strategy.tensor_parallel_size=2"], (2, 2)),
        (["strategy=fsdp2_offload", "trainer.strategy.tensor_parallel_size=auto"], (4, 1)),
        (["trainer.strategy={_target_: lightning.pytorch.strategies.ModelParallelStrategy}"], (4, 1)),
    ],
)
def test_sizes_follow_the_devices(overrides: list[str], sizes: tuple[int, int]) -> None:
    strategy = built(*overrides).strategy
    assert isinstance(strategy, ShardedStrategy)
    check_strategy(strategy)
    assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == sizes
    assert strategy.cpu_offload == ("strategy=fsdp2_offload" in overrides)


def test_sizes_that_are_not_the_devices_are_refused() -> None:
    strategy = built("strategy=fsdp2", "trainer.strategy.data_parallel_size=3").strategy
    with pytest.raises(ValueError, match=r"data_parallel_size 3 .* not the number of processes, 4"):
        check_strategy(strategy)


def test_a_batch_is_divided_by_the_processes_that_read_different_data() -> None:
    assert micro_size(24, 2, 4, 1) == 3
    assert micro_size(24, 2, 4, 1, {"tensor_parallel_size": 2}) == 6
    assert micro_size(24, 2, 4, 1, {"tensor_parallel_size": "auto"}) == 3
    with pytest.raises(ValueError, match=r"tensor_parallel_size 3 does not divide 4 devices"):
        micro_size(24, 2, 4, 1, {"tensor_parallel_size": 3})


def test_ddp_in_a_word_and_in_lightnings() -> None:
    assert isinstance(built("strategy=ddp").strategy, DDPStrategy)
    assert isinstance(built("trainer.strategy=ddp").strategy, DDPStrategy)
    assert isinstance(built("strategy=fsdp2", "trainer.strategy=ddp").strategy, DDPStrategy)


def test_strategies_with_checkpoints_of_their_own_are_refused(tmp_path: Path) -> None:
    for strategy in (FSDPStrategy(), ModelParallelStrategy()):
        with pytest.raises(ValueError, match=rf"{type(strategy).__name__} has checkpoints of its own.*strategy=fsdp2"):
            check_strategy(strategy)
    outcome = train(str(tmp_path / "run"), "trainer.strategy=fsdp", "trainer.accelerator=cpu")
    assert outcome.code == 2
    assert "FSDP" in outcome.line or "fsdp" in outcome.line
    assert not (tmp_path / "run").exists()
