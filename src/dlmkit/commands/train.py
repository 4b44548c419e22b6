"""`dlmkit train`: one run, or a sweep of them through Hydra."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any, TextIO

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape

from dlmkit import __version__, runs
from dlmkit.commands import ranks
from dlmkit.config import check_overrides, conf_dir, flatten, register_resolvers, run_name

FLAGS = ("--multirun", "--cfg", "--resolve", "--package", "--info", "--config-dir", "--hydra-help")  # Hydra's


def main(arguments: list[str]) -> None:
    """Hand `arguments` (Hydra overrides and flags) to Hydra, which calls `train` for each run."""
    for argument in arguments:
        if argument.startswith("--") and argument.partition("=")[0] not in FLAGS:
            raise ValueError(
                f"{argument} is no flag of `dlmkit train`: settings are key=value, flags {' '.join(FLAGS)}"
            )
    register_resolvers()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach the command line as exceptions, to be put in one line there
    script, sys.argv = sys.argv[0], ["dlmkit train", *arguments]

    def job(config: DictConfig) -> float:
        return _job(config, script)

    with contextlib.redirect_stderr(_WithoutHydrasLine(sys.stderr)):
        hydra.main(version_base="1.3", config_path=str(conf_dir().resolve()), config_name="train")(job)()


class _WithoutHydrasLine(io.TextIOBase):
    """Standard error without the line that Hydra writes before it raises a run's error: the command line says it."""

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
        summary = train(config, run_dir, choices, overrides, script)
    except (ValueError, HydraException) as error:
        if hydra_config.mode == RunMode.MULTIRUN:
            error.add_note(f"run {run_dir.name}")
        raise
    finally:
        if run_dir.is_dir() and not any(run_dir.iterdir()):
            run_dir.rmdir()  # Hydra made it before anything could be checked
    return float(summary["val_nll"])


def train(
    config: DictConfig, run_dir: Path, choices: dict[str, Any], overrides: list[str], script: str
) -> dict[str, Any]:
    """Train one run from start to summary and return the summary.

    Args:
        config: composed configuration; `vocab` is filled in here.
        run_dir: the run's folder.
        choices: group -> chosen file, for the record.
        overrides: what the user (or the sweep) typed, from which the folder of a sibling run follows.
        script: the path of the `dlmkit` that was called.
    """
    first = ranks.is_first()
    console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=not first)
    resume = runs.claim(run_dir, config.if_exists) if first else runs.last_checkpoint(run_dir, config.if_exists)
    if config.if_exists == "resume" and (finished := runs.finished_summary(run_dir, config.num_steps)):
        console.print(f"[bold]{escape(str(run_dir))}[/bold]: finished already", markup=True)
        return finished
    parent = starting_run(config, run_dir, overrides)

    from dlmkit.build import build_callbacks, build_data, build_module, build_trainer
    from dlmkit.callbacks.record import RunRecord
    from dlmkit.checkpoints.load import load_backbone_weights, num_steps_of
    from dlmkit.training import budget

    _quiet(first and console.is_terminal)
    data = build_data(config)
    module = build_module(config, bytes_per_token(data.corpus))
    if parent is not None:
        load_backbone_weights(module.backbone, parent)
    parent_summary = None if parent is None else runs.read_summary(runs.checkpoint_of(parent)[0])
    flops_per_token = budget.flops_per_token(module, config.length)
    facts = describe(config, run_dir, choices, parent_summary, module, data.corpus)
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    record = RunRecord(
        run_dir,
        facts,
        {key: value for key, value in flatten({**resolved, **choices}) if _is_scalar(value)},
        flops_per_token,
        config.batch.size * config.length,
        module.corruption.num_copies,
    )
    module.flops_per_batch = flops_per_token * config.batch.micro_size * config.length
    progress = first and console.is_terminal
    callbacks = [record, *build_callbacks(config), *_progress_bar(progress)]
    trainer = build_trainer(config, run_dir, callbacks, progress, 0 if resume is None else num_steps_of(resume))

    if first:
        _open_folder(run_dir, resume is None, resolved, data.corpus)
    _announce(console, run_dir, config, module.backbone.num_params, parent)
    began = time.perf_counter()
    command = [script, "train", *overrides, f"hydra.run.dir='{run_dir}'"]
    try:
        with ranks.started_again_as(command):
            if config.validation.at_start and resume is None:
                trainer.validate(module, datamodule=data, verbose=False)
            trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=False if resume else None)
            trainer.save_checkpoint(run_dir / runs.LAST_CHECKPOINT)
            module.set_val_times(config.validation.num_times)
            (metrics,) = trainer.validate(module, datamodule=data, verbose=False)
    except SystemExit as stop:  # how Lightning ends on Ctrl-C and on SIGTERM
        raise KeyboardInterrupt(f"go on with the same command and if_exists=resume ({run_dir})") from stop
    finally:
        if resume is None and trainer.global_step == 0 and trainer.is_global_zero:
            runs.clear(run_dir)  # nothing was trained: nothing is left behind
    summary = record.finish(trainer, module, dict(metrics))
    _conclude(console, summary, time.perf_counter() - began)
    return summary


def _open_folder(run_dir: Path, anew: bool, resolved: dict[str, Any], corpus: Any) -> None:
    """Write what a run's folder holds before the first step."""
    if anew:
        runs.clear(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(resolved), run_dir / runs.CONFIG)
    if corpus.tokenizer is not None:
        corpus.tokenizer.save(run_dir / "tokenizer")


def starting_run(config: DictConfig, run_dir: Path, overrides: list[str]) -> Path | None:
    """Return the run folder or checkpoint that `init_from` names, or ``None``.

    Raises:
        ValueError: it does not exist or has not finished.
    """
    if config.init_from is None:
        return None
    if isinstance(config.init_from, DictConfig):
        from hydra_plugins.dlmkit_in_order.sweeper import sibling

        changes = {str(key): config.init_from[key] for key in config.init_from}
        kept = [o for o in overrides if o.partition("=")[0].lstrip("+") not in ("experiment", "if_exists")]
        parent = run_dir.parent / run_name(",".join(sorted(sibling(kept, changes))))
    else:
        parent = Path(config.init_from)
    folder, _ = _checkpoint(parent)
    summary = runs.read_summary(folder)
    if summary is None or summary["status"] != "finished":
        raise ValueError(f"init_from names {folder}, which has not finished: train it first, or name another run")
    return parent


def _checkpoint(parent: Path) -> tuple[Path, Path]:
    try:
        return runs.checkpoint_of(parent)
    except ValueError as error:
        raise ValueError(
            f"init_from names {parent}, which holds no finished run: train it first (the sweep does)"
        ) from error


def describe(
    config: DictConfig,
    run_dir: Path,
    choices: dict[str, Any],
    parent: dict[str, Any] | None,
    module: Any,
    corpus: Any,
) -> dict[str, Any]:
    """Return what is known of a run before it is trained; keys that begin with start_ are not written."""
    has_schedule = "schedule" in config.process
    return {
        "experiment": choices["experiment"],
        "name": run_dir.name,
        "family": choices["family"],
        "objective": choices["objective"],
        "process": choices["process"],
        "schedule": choices["schedule"] if has_schedule else None,
        "backbone": choices["backbone"],
        "sampler": choices["sampler"],
        "t_sampler": choices["t_sampler"],
        "corruption": choices["corruption"],
        "data": choices["data"],
        "params": module.backbone.num_params,
        "init_from": None if parent is None else parent["name"],
        "nll_is_exact": module.objective.exact,
        "entropy_per_token": corpus.entropy_per_token,
        "seed": config.seed,
        "git_commit": runs.git_commit(),
        "data_fingerprint": corpus.fingerprint,
        "dlmkit_version": __version__,
        "start_tokens": 0 if parent is None else parent["total_tokens"],
        "start_flops": 0.0 if parent is None else parent["total_flops"],
    }


def bytes_per_token(corpus: Any) -> float | None:
    """Return UTF-8 bytes per validation token, or ``None`` where the data is not text."""
    return None if corpus.val_bytes is None else corpus.val_bytes / corpus.num_val_tokens


def _progress_bar(progress: bool) -> list[Any]:
    from lightning.pytorch.callbacks import RichProgressBar

    return [RichProgressBar(leave=False)] if progress else []


def _announce(console: Console, run_dir: Path, config: DictConfig, num_params: int, parent: Path | None) -> None:
    start = "" if parent is None else f", starting from {escape(str(parent))}"
    console.print(
        f"[bold]{escape(str(run_dir))}[/bold]: {num_params:,} parameters, {config.num_steps:,} steps of"
        f" {config.batch.size * config.length:,} tokens{start}"
    )


def _conclude(console: Console, summary: dict[str, Any], seconds: float) -> None:
    sign = "=" if summary["nll_is_exact"] else "<="
    bound = f"nll {sign} {summary['val_nll']:.4f} +- {summary['val_nll_stderr']:.4f} nats/token"
    console.print(
        f"[bold]{escape(summary['name'])}[/bold]: {bound} over {summary['val_tokens']:,} tokens,"
        f" {summary['tokens_per_second']:,.0f} tokens/s, {seconds:.0f} s"
    )


def _quiet(progress: bool) -> None:
    """Silence what Lightning says about every run; the run's own lines say what matters.

    Args:
        progress: whether transformers may show a bar while it loads weights.
    """
    from transformers.utils import logging as transformers_logging

    if not progress:
        transformers_logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))
