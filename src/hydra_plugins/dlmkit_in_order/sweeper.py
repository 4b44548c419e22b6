"""Hydra's basic sweeper, with every run after the run that it starts from."""

import traceback
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Optional

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf


@dataclass
class InOrderSweeperConf:
    """Keywords of the sweeper, as Hydra wants them declared."""

    _target_: str = "hydra_plugins.dlmkit_in_order.sweeper.InOrderSweeper"
    max_batch_size: Optional[int] = None  # noqa: UP045  # OmegaConf reads the annotation
    params: Optional[dict[str, str]] = None  # noqa: UP045


ConfigStore.instance().store(group="hydra/sweeper", name="in_order", node=InOrderSweeperConf, provider="dlmkit")


MULTIRUN = "multirun.yaml"


class SweepFailed(ValueError):
    """Some runs of a sweep failed; one line names each with the reason."""


class InOrderSweeper(BasicSweeper):
    """Runs a sweep in stages: a run whose `init_from` names another run of the sweep comes in a later stage.

    Within a stage the launcher is free to run everything at once; a stage begins when the one before it has ended. A
    run that fails stops no other, except those that would start from it.
    """

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Run the sweep; one that failed before any run began leaves no folder.

        Raises:
            SweepFailed: some runs failed, when all have ended.
            ValueError: hydra.sweep.dir has a multirun.yaml that is not Hydra's.
        """
        assert self.config is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        (runs,) = BasicSweeper.split_arguments(overrides, None)
        self.validate_batch_is_legal(runs)
        parents = parents_of(runs, [self._init_from(run) for run in runs])
        stages = stages_of(runs, parents)
        folder = Path(self.config.hydra.sweep.dir)
        is_new, is_first = not folder.exists(), not (folder / MULTIRUN).exists()
        self._write_multirun(folder)
        try:
            return self._run(runs, parents, stages)
        finally:
            if is_first and [path.name for path in folder.iterdir()] == [MULTIRUN]:
                (folder / MULTIRUN).unlink()
                if is_new:
                    folder.rmdir()

    def _run(
        self, runs: list[list[str]], parents: Sequence[int | None], stages: Sequence[int]
    ) -> list[Sequence[JobReturn]]:
        assert self.launcher is not None
        names, failed = short_names(runs), dict[int, str]()
        returns: list[Sequence[JobReturn]] = []
        order = sorted(range(len(runs)), key=lambda number: stages[number])
        for batch in self._batches(order, stages):
            skipped = {number: parent for number in batch if (parent := parents[number]) in failed}
            failed |= {number: f"not started, since {names[parent]} failed" for number, parent in skipped.items()}
            for piece in _pieces(batch, skipped):
                overrides = [runs[number] for number in piece]
                results = self.launcher.launch(overrides, initial_job_idx=order.index(piece[0]))
                returns.append(results)
                ended = zip(piece, results, strict=True)
                failed |= {number: _reason(result) for number, result in ended if result.status == JobStatus.FAILED}
        if failed:
            reasons = " | ".join(f"{names[number]}: {failed[number]}" for number in order if number in failed)
            raise SweepFailed(f"{len(failed)} of {len(runs)} runs failed: {reasons}")
        return returns

    def _batches(self, order: Sequence[int], stages: Sequence[int]) -> Iterator[Sequence[int]]:
        """Give the runs of each stage, at most `max_batch_size` at a time."""
        for _, group in groupby(order, key=lambda number: stages[number]):
            stage = list(group)
            size = self.max_batch_size or len(stage)
            yield from (stage[start : start + size] for start in range(0, len(stage), size))

    def _write_multirun(self, folder: Path) -> None:
        """Write Hydra's own record of the sweep."""
        assert self.config is not None
        file = folder / MULTIRUN
        if file.is_file() and not file.read_text(errors="replace").startswith("hydra:"):
            raise ValueError(f"{file} is not the record of a sweep: move it away, or set another hydra.sweep.dir")
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, file)

    def _init_from(self, run: Sequence[str]) -> dict[str, Any] | None:
        assert self.hydra_context is not None
        assert self.config is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(run))
        init_from = config.init_from
        return {str(key): init_from[key] for key in init_from} if isinstance(init_from, DictConfig) else None


def _pieces(batch: Sequence[int], left_out: Container[int]) -> Iterator[list[int]]:
    """Give the runs of a batch that are not left out, in pieces without gaps, so that Hydra numbers each as it is."""
    for is_out, piece in groupby(batch, key=lambda number: number in left_out):
        if not is_out:
            yield list(piece)


def _reason(result: JobReturn) -> str:
    """Return one line on why a run failed; a fault that is not the user's is also printed in full."""
    from dlmkit.config import explain

    error = result._return_value
    line = explain(error, result.overrides or [])
    if line is None:
        traceback.print_exception(error)
        line = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return line


def short_names(runs: Sequence[Sequence[str]]) -> list[str]:
    """Return a name for each run: its overrides without those that all runs have."""
    shared = set.intersection(*map(set, runs)) if len(runs) > 1 else set()
    return [",".join(override for override in run if override not in shared) or "the run" for run in runs]


def parents_of(runs: Sequence[Sequence[str]], init_from: Sequence[dict[str, Any] | None]) -> list[int | None]:
    """Return for each run the number of the run in the sweep that it starts from, or ``None``.

    Args:
        runs: override lists, such as ["family=adapted", "seed=1"].
        init_from: per run the overrides that name its parent, or ``None``.
    """
    index = {frozenset(run): number for number, run in enumerate(runs)}
    changed = zip(runs, init_from, strict=True)
    return [None if changes is None else index.get(frozenset(sibling(run, changes))) for run, changes in changed]


def stages_of(runs: Sequence[Sequence[str]], parents: Sequence[int | None]) -> list[int]:
    """Return each run's stage: 0, or one more than the stage of the run in the sweep that it starts from.

    Raises:
        ValueError: runs that start from each other in a circle.
    """

    def stage(number: int, seen: frozenset[int]) -> int:
        if number in seen:
            raise ValueError(f"run {' '.join(runs[number])} starts from itself by way of init_from: break the circle")
        parent = parents[number]
        return 0 if parent is None else 1 + stage(parent, seen | {number})

    return [stage(number, frozenset()) for number in range(len(runs))]


def sibling(run: Sequence[str], changes: dict[str, Any]) -> list[str]:
    """Return the override list of the run that differs from `run` by `changes` alone, in the same order."""
    own = [override.partition("=")[0] for override in run]
    replaced = [f"{key}={changes[key]}" if key in changes else override for key, override in zip(own, run, strict=True)]
    return replaced + [f"{key}={value}" for key, value in changes.items() if key not in own]
