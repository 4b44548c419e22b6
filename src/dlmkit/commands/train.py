"""`dlmkit train`: one run, or a sweep of them through Hydra."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape

from dlmkit import __version__, runs
from dlmkit.commands.messages import announce, conclude, progress_bar, silence_libraries, whole_checkpoint
from dlmkit.commands.relaunch import relaunch_as
from dlmkit.config import check_overrides, conf_dir, register_resolvers, run_name
from dlmkit.files import full_disk_explained, remove_partials, write_text
from dlmkit.nested import flatten
from dlmkit.ranks import is_rank_zero
from dlmkit.runs import ParentRun, RunSummary

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from dlmkit.callbacks.record import RunRecord
    from dlmkit.data.corpora.base import Corpus
    from dlmkit.data.module import CorpusDataModule
    from dlmkit.module import DiffusionLM

FLAGS_WITH_VALUE = ("--cfg", "--package", "--config-dir")
FLAGS = ("--multirun", "--cfg", "--resolve", "--package", "--info", "--config-dir", "--hydra-help")  # Hydra's


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
        _command_line(["dlmkit train", *_overrides_first(arguments)]),
        contextlib.redirect_stderr(_WithoutHydrasLine(sys.stderr)),
    ):
        hydra.main(version_base="1.3", config_path=str(conf_dir().resolve()), config_name="train")(job)()


def _overrides_first(arguments: list[str]) -> list[str]:
    """Return overrides, then flags with their values: Hydra's parser takes the overrides only in one piece."""
    overrides: list[str] = []
    flags: list[str] = []
    for argument in arguments:
        is_value = bool(flags) and flags[-1] in FLAGS_WITH_VALUE
        (flags if is_value or argument.startswith("-") else overrides).append(argument)
    return [*overrides, *flags]


@contextlib.contextmanager
def _command_line(arguments: list[str]) -> Iterator[None]:
    """Set the process's command line, which is where Hydra reads its arguments, and restore it afterwards."""
    before, sys.argv = sys.argv, arguments
    try:
        yield
    finally:
        sys.argv = before


class _WithoutHydrasLine(io.TextIOBase):
    """Standard error without the line that Hydra writes before it raises a run's error: the command line prints it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if text.startswith("Error executing job with overrides:") else self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding


def _job(config: DictConfig, script: str) -> float:
    """Run one job of Hydra's and return its validation NLL (for sweepers that optimise).

    Args:
        config: composed configuration.
        script: the path of the `dlmkit` that was called, with which the other processes of a run are started.
    """
    register_resolvers()
    run_dir = Path(config.run_dir)
    hydra_config = HydraConfig.get()
    choices = {key: value for key, value in hydra_config.runtime.choices.items() if not key.startswith("hydra/")}
    overrides = list(hydra_config.overrides.task)
    try:
        check_overrides(config, overrides)
        with full_disk_explained(run_dir):
            summary = train(config, run_dir, choices, overrides, script)
    except (ValueError, HydraException) as error:
        if hydra_config.mode == RunMode.MULTIRUN:
            error.add_note(f"run {run_dir.name}")
        raise
    finally:
        if run_dir.is_dir() and not any(run_dir.iterdir()):
            run_dir.rmdir()  # Hydra made it before anything could be checked
    assert summary.val_nll is not None
    return summary.val_nll


def train(config: DictConfig, run_dir: Path, choices: dict[str, Any], overrides: list[str], script: str) -> RunSummary:
    """Train one run from start to summary and return the summary.

    Args:
        config: composed configuration; `vocab` is filled in here.
        run_dir: the run's folder.
        choices: group -> chosen file, for the record.
        overrides: what the user (or the sweep) typed, from which the folder of a sibling run follows.
        script: the path of the `dlmkit` that was called.
    """
    rank_zero = is_rank_zero()
    console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=not rank_zero)
    resume = runs.claim(run_dir, config.if_exists) if rank_zero else runs.last_checkpoint(run_dir, config.if_exists)
    if config.if_exists == "resume" and (finished := runs.finished_summary(run_dir, config.num_steps)):
        console.print(f"[bold]{escape(str(run_dir))}[/bold]: finished already", markup=True)
        return finished
    parent = starting_run(config, run_dir, overrides)
    resume = whole_checkpoint(console, resume)

    from dlmkit.build import build_callbacks, build_data, build_module, build_trainer
    from dlmkit.checkpoints.load import load_backbone_weights, num_steps_of

    progress = rank_zero and console.is_terminal
    silence_libraries(progress)
    data = build_data(config)
    module = build_module(config, bytes_per_token(data.corpus))
    if parent is not None:
        load_backbone_weights(module.backbone, parent.checkpoint)
    summary = describe(config, run_dir, choices, parent, module, data.corpus)
    record = _record(config, run_dir, choices, parent, module, summary)
    callbacks = [record, *build_callbacks(config), *progress_bar(progress)]
    trainer = build_trainer(config, run_dir, callbacks, progress, 0 if resume is None else num_steps_of(resume))

    if rank_zero:
        _open_folder(run_dir, config, data.corpus, clear=resume is None)
    announce(console, run_dir, config, summary.params, parent)
    began = time.perf_counter()
    with relaunch_as([script, "train", *overrides, f"hydra.run.dir='{run_dir}'"]):
        finished = _run(trainer, module, data, record, config, resume)
    conclude(console, finished, time.perf_counter() - began)
    return finished


def _record(
    config: DictConfig,
    run_dir: Path,
    choices: dict[str, Any],
    parent: ParentRun | None,
    module: DiffusionLM,
    summary: RunSummary,
) -> RunRecord:
    from dlmkit.callbacks.record import RunRecord
    from dlmkit.training.budget import flops_per_token

    resolved = _resolved(config)  # here, since Hydra's own values are hidden while the run trains
    settings = {**flatten(resolved), **choices}
    return RunRecord(
        run_dir,
        summary,
        parent,
        {key: value for key, value in settings.items() if isinstance(value, (bool, int, float, str))},
        lambda: flops_per_token(module, config.length),
        config.batch.size * config.length,
        module.corruption.num_copies,
        lambda block_size: _write_config(run_dir, OmegaConf.create(resolved), block_size),
    )


def _run(
    trainer: Trainer,
    module: DiffusionLM,
    data: CorpusDataModule,
    record: RunRecord,
    config: DictConfig,
    resume: Path | None,
) -> RunSummary:
    """Train, save, validate and complete the record; a run that stops before its first step leaves no files."""
    from dlmkit.loggers import close

    try:
        if config.validation.at_start and resume is None:
            trainer.validate(module, datamodule=data, verbose=False)
        trainer.fit(module, datamodule=data, ckpt_path=resume)
        # Lightning's count, by which rows are logged, is one behind in the checkpoint of the last step.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        trainer.save_checkpoint(record.run_dir / runs.LAST_CHECKPOINT)
        module.set_val_times(config.validation.num_times)
        (metrics,) = trainer.validate(module, datamodule=data, verbose=False)
        return record.finish(trainer, module, dict(metrics))
    except SystemExit as stop:  # how Lightning ends on Ctrl-C and on SIGTERM
        raise KeyboardInterrupt(f"continue with the same command and if_exists=resume ({record.run_dir})") from stop
    finally:
        close(trainer.loggers)
        if resume is None and trainer.global_step == 0 and trainer.is_global_zero:
            runs.clear(record.run_dir)


def _open_folder(run_dir: Path, config: DictConfig, corpus: Corpus, clear: bool) -> None:
    """Write what a run's folder holds before the first step, after removing an earlier run if `clear`."""
    if clear:
        runs.clear(run_dir)
    remove_partials(run_dir)
    _write_config(run_dir, config)
    if corpus.tokenizer is not None:
        corpus.tokenizer.save(run_dir / "tokenizer")


def _write_config(run_dir: Path, config: DictConfig, block_size: int | None = None) -> None:
    """Write config.yaml, with the block size that training has reached."""
    content = _resolved(config)
    if block_size is not None:
        content["objective"]["block_size"] = block_size
        if content["sampler"].get("block_size") is not None:
            content["sampler"]["block_size"] = block_size
    write_text(run_dir / runs.CONFIG, OmegaConf.to_yaml(OmegaConf.create(content)))


def _resolved(config: DictConfig) -> dict[str, Any]:
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return resolved


def starting_run(config: DictConfig, run_dir: Path, overrides: list[str]) -> ParentRun | None:
    """Return the run that `init_from` names, by a path or as a sibling in the same sweep, or ``None``.

    Raises:
        ValueError: it does not exist or has not finished.
    """
    if config.init_from is None:
        return None
    if not isinstance(config.init_from, DictConfig):
        return runs.read_parent(Path(config.init_from))
    from hydra_plugins.dlmkit_in_order.sweeper import sibling

    changes = {str(key): config.init_from[key] for key in config.init_from}
    kept = [o for o in overrides if o.partition("=")[0].lstrip("+") not in ("experiment", "if_exists")]
    try:
        return runs.read_parent(run_dir.parent / run_name(",".join(sorted(sibling(kept, changes)))))
    except ValueError as error:
        pretrained = config.backbone.get("name")
        if pretrained is None:
            raise
        raise ValueError(
            f"family={config.member} starts from an autoregressive run of the same sweep, and there is none: to start"
            f" from a pretrained model, set experiment=adapt backbone.name={pretrained} in its place"
        ) from error


def describe(
    config: DictConfig,
    run_dir: Path,
    choices: dict[str, Any],
    parent: ParentRun | None,
    module: DiffusionLM,
    corpus: Corpus,
) -> RunSummary:
    """Return the record of a run before its first step."""
    return RunSummary(
        experiment=choices["experiment"],
        name=run_dir.name,
        family=choices["family"],
        objective=choices["objective"],
        process=choices["process"],
        corruption=choices["corruption"],
        schedule=choices["schedule"] if "schedule" in config.process else None,
        backbone=choices["backbone"],
        sampler=choices["sampler"],
        t_sampler=choices["t_sampler"],
        data=choices["data"],
        precision=None if config.trainer.precision is None else str(config.trainer.precision),
        params=module.backbone.num_params,
        block_size=module.block_size,
        init_from=None if parent is None else parent.name,
        nll_is_exact=module.objective.exact,
        entropy_per_token=corpus.entropy_per_token,
        seed=config.seed,
        git_commit=runs.git_commit(),
        data_fingerprint=corpus.fingerprint,
        dlmkit_version=__version__,
    )


def bytes_per_token(corpus: Corpus) -> float | None:
    """Return UTF-8 bytes per validation token, or ``None`` where the data is not text."""
    return None if corpus.val_bytes is None else corpus.val_bytes / corpus.num_val_tokens
