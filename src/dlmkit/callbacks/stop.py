"""Stopping on a signal: the optimizer step, and a validation that is running, are completed and saved first."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.states import TrainerFn

from dlmkit import runs
from dlmkit.runs import Stopped, StopSignals

SECONDS_TO_END = 30
"""How long the processes of the other ranks may take, once they have stopped."""


class StopOnSignal(pl.Callback):
    """Saves a checkpoint and stops once a signal has come to any rank, at the same step on all of them.

    Between two validations it saves into `runs.STOP_CHECKPOINT`, which is deleted when the run finishes. A run that is
    due for a validation, or in one, completes it, and is saved then: by another callback where that saves after
    validations, else by this one. It comes last among the callbacks, which have then updated their states; Lightning
    puts those that save checkpoints even later.

    Args:
        signals: the signals that came.
        run_dir: the run's folder.
        every_steps: optimizer steps between validations.
    """

    def __init__(self, signals: StopSignals, run_dir: Path, every_steps: int) -> None:
        self.signals = signals
        self.run_dir = run_dir
        self.file = run_dir / runs.STOP_CHECKPOINT
        self.every_steps = every_steps
        self.stopping = False
        self.steps = 0
        self.validated = False  # since a signal came, with another callback that may have saved
        self.saved_before: tuple[Path, int] | None = None

    @property
    def signum(self) -> int:
        """The signal that stops the run: what came to this process, or what Ctrl-C sends."""
        return signal.SIGINT if self.signals.requested is None else self.signals.requested

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals back from Lightning, whose handlers stop without saving."""
        self.steps = trainer.global_step
        self.signals.install()
        self.signals.can_save = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Delete an earlier run that was replaced, now that this one has a checkpoint; stop if it was saved for that.

        Raises:
            Stopped: a signal came, and the run was saved.
        """
        if trainer.is_global_zero and runs.is_replacing(self.run_dir) and runs.has_checkpoint(self.run_dir):
            runs.settle(self.run_dir)
        if self.validated and trainer.strategy.broadcast(self._newest() != self.saved_before):
            self.stopping = True
        if self.stopping:
            _end_together(trainer)
            raise Stopped(self.signum)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if a signal came, unless a validation follows or the training is done."""
        if trainer.global_step == self.steps:
            return  # not the last micro-batch of a step
        self.steps = trainer.global_step
        if self.steps % self.every_steps and self.steps < trainer.max_steps and self._wanted(trainer):
            self._save(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals back from Lightning also where it validates without training."""
        self.signals.install()
        self.saved_before = self._newest()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after a validation during training, if a signal came."""
        is_last = trainer.global_step >= trainer.max_steps
        if trainer.state.fn != TrainerFn.FITTING or is_last or not self._wanted(trainer):
            return
        if self.validated or not trainer.checkpoint_callbacks:
            self._save(trainer)
        self.validated = True

    def finish(self, trainer: pl.Trainer) -> None:
        """Delete the checkpoint of an earlier stop, now that the trained run is saved; a signal now stops it at once.

        Raises:
            Stopped: a signal came in the last step.
        """
        self.signals.can_save = False
        if trainer.is_global_zero:
            trainer.strategy.remove_checkpoint(self.file)
        self.signals.check()

    def _wanted(self, trainer: pl.Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self.signals.requested is not None, all=False)

    def _newest(self) -> tuple[Path, int] | None:
        """Return the newest checkpoint with the time when it was written."""
        file = runs.last_checkpoint(self.run_dir, "resume")
        return None if file is None else (file, file.stat().st_mtime_ns)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.file)
        self.stopping = True


def _end_together(trainer: pl.Trainer) -> None:
    """Let the processes of the other ranks end first, without an error: Lightning kills this one if one of them fails.

    Raises:
        SystemExit: on another rank than zero.
    """
    if not trainer.is_global_zero:
        raise SystemExit(0)
    launcher = trainer.strategy.launcher
    for process in launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else ():
        with contextlib.suppress(subprocess.TimeoutExpired):  # Lightning then ends it
            process.wait(SECONDS_TO_END)
