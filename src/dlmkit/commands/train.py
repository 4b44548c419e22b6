"""`dlmkit train`: one run, or a sweep of them through Hydra."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape

from dlmkit import runs
from dlmkit.commands.hydra_arguments import FLAGS, WithoutHydrasLine, command_line, home_named, overrides_first
from dlmkit.commands.messages import (
    RunConsole,
    announce,
    conclude,
    progress_bar,
    silence_libraries,
    whole_checkpoint,
)
from dlmkit.commands.relaunch import quoted, relaunch_as
from dlmkit.commands.run_folder import (
    bytes_per_token,
    check_data,
    compare_settings,
    describe,
    make_record,
    open_folder,
    starting_run,
)
from dlmkit.config import check_overrides, check_values, conf_dir, register_resolvers, settle_precision
from dlmkit.files import full_disk_explained
from dlmkit.ranks import is_rank_zero
from dlmkit.runs import RunSummary, Stopped, StopSignals

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from dlmkit.callbacks.record import RunRecord
    from dlmkit.callbacks.stop import StopOnSignal
    from dlmkit.data.module import CorpusDataModule
    from dlmkit.module import DiffusionLM


def main(arguments: list[str]) -> None:
    """Hand `arguments` (Hydra overrides and flags) to Hydra, which calls `train` for each run."""
    for argument in arguments:
        if argument.startswith("--") and argument.partition("=")[0] not in FLAGS:
            raise ValueError(
                f"{argument} is no flag of `dlmkit train`: settings are key=value, flags {' '.join(FLAGS)}"
            )
    register_resolvers()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises errors, which the command line puts in one line
    script = sys.argv[0]

    def job(config: DictConfig) -> float:
        return _job(config, script)

    with (
        command_line(["dlmkit train", *overrides_first(list(map(home_named, arguments)))]),
        contextlib.redirect_stderr(WithoutHydrasLine(sys.stderr)),
    ):
        hydra.main(version_base="1.3", config_path=str(conf_dir().resolve()), config_name="train")(job)()


def _job(config: DictConfig, script: str) -> float:
    """Run one job of Hydra's and return its validation NLL (for sweepers that optimise).

    Args:
        config: composed configuration.
        script: the path of the `dlmkit` that was called, with which the other processes of a run are started.
    """
    register_resolvers()
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    choices = {key: value for key, value in hydra_config.runtime.choices.items() if not key.startswith("hydra/")}
    overrides = list(hydra_config.overrides.task)
    try:
        check_overrides(config, overrides)
        check_values(config)
        command = [script, "train", *_config_dir(hydra_config)]
        with full_disk_explained(run_dir):
            summary = train(config, Path(config.run_dir), choices, overrides, command)
    finally:
        if run_dir.is_dir() and not any(run_dir.iterdir()):
            run_dir.rmdir()  # Hydra made it before anything could be checked
    assert summary.val_nll is not None
    return summary.val_nll


def _config_dir(hydra_config: HydraConf) -> list[str]:
    """Return the flag --config-dir with its folder where one was given, else nothing."""
    folders = [source.path for source in hydra_config.runtime.config_sources if source.provider == "command-line"]
    return [f"--config-dir={folder}" for folder in folders]


def train(
    config: DictConfig, run_dir: Path, choices: dict[str, Any], overrides: list[str], command: list[str]
) -> RunSummary:
    """Train one run from start to summary and return the summary.

    Args:
        config: composed configuration; `vocab` and a precision of `auto` are filled in here.
        run_dir: the run's folder.
        choices: group -> chosen file, for the record.
        overrides: what the user (or the sweep) typed, from which the folder of a sibling run follows.
        command: that starts another process of this run, up to its overrides.
    """
    rank_zero = is_rank_zero()
    console = RunConsole(quiet=not rank_zero)
    resuming, precision = config.if_exists in runs.RESUMING, config.trainer.precision
    with StopSignals(requeue=resuming, rank_zero=rank_zero) as signals, _folder(run_dir, config, rank_zero) as newest:
        if resuming and (finished := _look_at_earlier(run_dir, config, newest, console)):
            console.print(f"[bold]{escape(str(run_dir))}[/bold]: finished already", markup=True)
            return finished
        parent = starting_run(config, run_dir, overrides)
        resume = whole_checkpoint(console, newest)

        from dlmkit.build import build_callbacks, build_data, build_module, build_trainer
        from dlmkit.callbacks.stop import StopOnSignal
        from dlmkit.checkpoints.load import load_backbone_weights, num_steps_of

        if (line := settle_precision(config, precision)) is not None:
            console.print(f"[bold]{escape(str(run_dir))}[/bold]: {line}")
        progress = rank_zero and console.is_terminal
        silence_libraries(progress)
        data = build_data(config)
        if resume is not None:
            check_data(run_dir, data.corpus)
        module = build_module(config, bytes_per_token(data.corpus))
        if parent is not None:
            load_backbone_weights(module.backbone, parent.checkpoint)
        summary = describe(config, run_dir, choices, parent, module, data.corpus)
        record = make_record(config, run_dir, choices, parent, module, summary)
        stop = StopOnSignal(signals, run_dir, config.validation.every_steps)
        callbacks = [record, *build_callbacks(config), *progress_bar(progress), stop]
        trainer = build_trainer(config, run_dir, callbacks, progress, 0 if resume is None else num_steps_of(resume))

        if rank_zero:
            open_folder(run_dir, config, data.corpus, resumed=resume is not None)
        announce(console, run_dir, config, summary.params, parent)
        began = time.perf_counter()
        with relaunch_as([*command, *overrides, f"hydra.run.dir={quoted(str(run_dir))}"]):
            finished = _run(trainer, module, data, record, stop, config, resume)
        conclude(console, finished, time.perf_counter() - began)
        return finished


def _folder(run_dir: Path, config: DictConfig, rank_zero: bool) -> contextlib.AbstractContextManager[Path | None]:
    """Give the checkpoint to resume from; rank zero holds the folder meanwhile, for all ranks of the run."""
    if rank_zero:
        return runs.held(run_dir, config.if_exists)
    return contextlib.nullcontext(runs.last_checkpoint(run_dir, config.if_exists))


def _look_at_earlier(run_dir: Path, config: DictConfig, resume: Path | None, console: Console) -> RunSummary | None:
    """Return the summary of a run that has nothing left to do, or ``None`` where it starts or goes on.

    Raises:
        ValueError: it was begun with settings that give another result, or has finished with fewer steps.
    """
    summary = RunSummary.read(run_dir)
    if resume is None and (summary is None or not summary.finished):
        return None
    changes = compare_settings(run_dir, config)
    if not changes.only_steps:
        changes.check(run_dir)
    finished = runs.finished_summary(run_dir, config.num_steps)
    changes.check(run_dir)
    if changes.warning is not None:
        console.print(f"[bold]{escape(str(run_dir))}[/bold]: {escape(changes.warning)}")
    return finished


def _run(
    trainer: Trainer,
    module: DiffusionLM,
    data: CorpusDataModule,
    record: RunRecord,
    stop: StopOnSignal,
    config: DictConfig,
    resume: Path | None,
) -> RunSummary:
    """Train, save, validate and complete the record; a run that stops before its first step leaves no files."""
    from dlmkit.loggers import close

    try:
        with record.recording(trainer):
            if config.validation.at_start and resume is None:
                trainer.validate(module, datamodule=data, verbose=False)
            trainer.fit(module, datamodule=data, ckpt_path=resume)
            # Lightning's count, by which rows are logged, is one behind in the checkpoint of the last step.
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
            trainer.save_checkpoint(record.run_dir / runs.LAST_CHECKPOINT)
            stop.finish(trainer)
            module.set_val_times(config.validation.num_times)
            (metrics,) = trainer.validate(module, datamodule=data, verbose=False)
            return record.finish(trainer, module, dict(metrics))
    except (SystemExit, Stopped) as error:  # SystemExit is how Lightning ends on a KeyboardInterrupt
        raise _stopped(record.run_dir, stop) from error
    finally:
        close(trainer.loggers)
        if resume is None and trainer.global_step == 0 and trainer.is_global_zero:
            runs.clear(record.run_dir)


def _stopped(run_dir: Path, stop: StopOnSignal) -> BaseException:
    """Return what ends a process whose run was stopped: for other ranks than zero, quietly."""
    if not is_rank_zero():
        return SystemExit(0)
    if runs.is_replacing(run_dir) and not runs.has_checkpoint(run_dir):
        return Stopped(stop.signum, f"the run that was to be replaced is back in {run_dir}")
    return Stopped(stop.signum, f"continue with the same command and if_exists=resume ({run_dir})")
