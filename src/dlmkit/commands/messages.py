"""What a training run prints: a line at its begin, a bar on a terminal, a line at its end, and nothing else."""

from __future__ import annotations

import logging
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape

from dlmkit.checkpoints.verify import newest_whole
from dlmkit.files import DISK_FULL
from dlmkit.runs import ParentRun, RunSummary

if TYPE_CHECKING:
    from lightning.pytorch import Callback


class RunConsole(Console):
    """Standard error of a run, which goes on when nobody reads its lines any more."""

    def __init__(self, quiet: bool) -> None:
        super().__init__(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)

    def on_broken_pipe(self) -> None:
        """Print nothing from now on, where rich's own console ends the process."""
        self.quiet = True


def progress_bar(progress: bool) -> list[Callback]:
    """Return the callback that draws a bar, or none."""
    from lightning.pytorch.callbacks import RichProgressBar

    return [RichProgressBar(leave=False)] if progress else []


def announce(console: Console, run_dir: Path, config: DictConfig, num_params: int, parent: ParentRun | None) -> None:
    """Print a run's folder, its size and where it starts from."""
    start = "" if parent is None else f", starting from {escape(str(parent.path))}"
    console.print(
        f"[bold]{escape(str(run_dir))}[/bold]: {num_params:,} parameters, {config.num_steps:,} steps of"
        f" {config.batch.size * config.length:,} tokens{start}"
    )


def whole_checkpoint(console: Console, newest: Path | None) -> Path | None:
    """Return `newest`, or the newest checkpoint beside it that is whole, and print which ones are damaged.

    Raises:
        ValueError: none is whole, or a pickle is among them.
    """
    if newest is None:
        return None
    file, damaged = newest_whole(list(newest.parent.glob("*.ckpt")))
    for line in damaged:
        console.print(f"{escape(line)}: continuing from {escape(str(file))}")
    return file


def conclude(console: Console, summary: RunSummary, seconds: float) -> None:
    """Print a run's result, speed and duration."""
    sign = "=" if summary.nll_is_exact else "<="
    bound = f"nll {sign} {summary.val_nll:.4f} +- {summary.val_nll_stderr:.4f} nats/token"
    console.print(
        f"[bold]{escape(summary.name)}[/bold]: {bound} over {summary.val_tokens:,} tokens,"
        f" {summary.tokens_per_second:,.0f} tokens/s, {seconds:.0f} s"
    )


def silence_libraries(progress: bool) -> None:
    """Silence the messages of Lightning and transformers; a run prints two lines of its own.

    To be called after Lightning is imported, which sets the levels of its loggers.

    Args:
        progress: whether transformers may show a bar while it loads weights.
    """
    from transformers.utils import logging as transformers_logging

    if not progress:
        transformers_logging.disable_progress_bar()
    threading.excepthook = _thread_failed
    for name in ("lightning.pytorch", "lightning.fabric", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def _thread_failed(arguments: threading.ExceptHookArgs) -> None:
    """Say nothing of a full disk in a thread: TensorBoard raises its writer's error again where the run sees it."""
    error = arguments.exc_value
    if not (isinstance(error, OSError) and error.errno in DISK_FULL):
        threading.__excepthook__(arguments)
