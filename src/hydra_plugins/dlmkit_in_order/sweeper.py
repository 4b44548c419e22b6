"""Hydra's basic sweeper, with every run after the run that it starts from."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig


@dataclass
class InOrderSweeperConf:
    """Keywords of the sweeper, as Hydra wants them declared."""

    _target_: str = "hydra_plugins.dlmkit_in_order.sweeper.InOrderSweeper"
    max_batch_size: Optional[int] = None  # noqa: UP045  # OmegaConf reads the annotation
    params: Optional[dict[str, str]] = None  # noqa: UP045


ConfigStore.instance().store(group="hydra/sweeper", name="in_order", node=InOrderSweeperConf, provider="dlmkit")


class InOrderSweeper(BasicSweeper):
    """Runs a sweep in stages: a run whose `init_from` names another run of the sweep comes in a later stage.

    Within a stage the launcher is free to run everything at once; a stage begins when the one before it has ended.
    """

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep; one that failed before any run began leaves no folder."""
        try:
            return super().sweep(arguments)
        finally:
            assert self.config is not None
            folder = Path(self.config.hydra.sweep.dir)
            if folder.is_dir() and [path.name for path in folder.iterdir()] == ["multirun.yaml"]:
                shutil.rmtree(folder)

    def split_arguments(  # type: ignore[override]  # the base class has it static, and calls it on self
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """Return batches of override lists, stage after stage."""
        (runs,) = BasicSweeper.split_arguments(overrides, None)
        stages = stages_of(runs, [self._init_from(run) for run in runs])
        batches = []
        for number in range(max(stages, default=0) + 1):
            stage = [run for run, of in zip(runs, stages, strict=True) if of == number]
            batches += list(BasicSweeper.split_overrides_to_chunks(stage, max_batch_size))
        return batches

    def _init_from(self, run: Sequence[str]) -> dict[str, Any] | None:
        assert self.hydra_context is not None
        assert self.config is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(run))
        init_from = config.init_from
        return {str(key): init_from[key] for key in init_from} if isinstance(init_from, DictConfig) else None


def stages_of(runs: Sequence[Sequence[str]], init_from: Sequence[dict[str, Any] | None]) -> list[int]:
    """Return each run's stage: 0, or one more than the stage of the run in the sweep that it starts from.

    Args:
        runs: override lists, such as ["family=adapted", "seed=1"].
        init_from: per run the overrides that name its parent, or ``None``.

    Raises:
        ValueError: runs that start from each other in a circle.
    """
    index = {frozenset(run): number for number, run in enumerate(runs)}

    def stage(number: int, seen: frozenset[int]) -> int:
        if number in seen:
            raise ValueError(f"run {' '.join(runs[number])} starts from itself by way of init_from: break the circle")
        changes = init_from[number]
        if changes is None:
            return 0
        parent = index.get(frozenset(sibling(runs[number], changes)))
        return 0 if parent is None else 1 + stage(parent, seen | {number})

    return [stage(number, frozenset()) for number in range(len(runs))]


def sibling(run: Sequence[str], changes: dict[str, Any]) -> list[str]:
    """Return the override list of the run that differs from `run` by `changes` alone, in the same order."""
    own = [override.partition("=")[0] for override in run]
    replaced = [f"{key}={changes[key]}" if key in changes else override for key, override in zip(own, run, strict=True)]
    return replaced + [f"{key}={value}" for key, value in changes.items() if key not in own]
