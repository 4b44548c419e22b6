"""The run's record: summary.json from the first step to the last, and the budget behind every point of the curves."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from dlmkit.files import DISK_FULL, json_text, overwrite_bytes
from dlmkit.loggers import log_hyperparams
from dlmkit.module import DiffusionLM
from dlmkit.runs import SUMMARY, ParentRun, RunSummary, Status, reason
from dlmkit.training.logging import log_step, logs_now


class RunRecord(pl.Callback):
    """Keeps summary.json up to date, and logs tokens and FLOPs so far beside every point of the curves.

    FLOPs are added up step by step, at what a token costs in that step. Where the block size changes during training,
    summary.json and config.yaml follow.

    Args:
        run_dir: the run's folder.
        summary: what is known before training; budgets and results are filled in.
        parent: the run that this one starts from, whose budget is added, or ``None``.
        hyperparameters: flat configuration for the loggers, such as TensorBoard's HParams tab.
        flops_per_token: gives the training FLOPs per token of the budget as they are now, all copies of it together;
            called after each optimizer step.
        tokens_per_step: tokens of a global batch.
        num_copies: noisy copies of each token that a step reads; speed counts each, budgets of tokens do not.
        write_config: writes config.yaml with the given block size.
    """

    def __init__(
        self,
        run_dir: Path,
        summary: RunSummary,
        parent: ParentRun | None,
        hyperparameters: dict[str, Any],
        flops_per_token: Callable[[], float],
        tokens_per_step: int,
        num_copies: int,
        write_config: Callable[[int | None], None],
    ) -> None:
        self.run_dir = run_dir
        self.summary = summary
        self.parent_tokens = 0 if parent is None else parent.tokens
        self.parent_flops = 0.0 if parent is None else parent.flops
        self.hyperparameters = hyperparameters
        self.flops_per_token = flops_per_token
        self.tokens_per_step = tokens_per_step
        self.num_copies = num_copies
        self.write_config = write_config
        self.steps = 0
        self.flops = 0.0
        self.peak_memory = 0
        self.train_seconds = 0.0
        self.batch_began = 0.0
        self.began = time.perf_counter()
        self.stopped = False

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run adds to."""
        return {
            "steps": self.steps,
            "flops": self.flops,
            "peak_memory": self.peak_memory,
            "train_seconds": self.train_seconds,
            "wall_seconds": time.perf_counter() - self.began,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what the interrupted run had used."""
        self.steps = state_dict["steps"]
        self.flops = state_dict["flops"]
        self.peak_memory = state_dict["peak_memory"]
        self.train_seconds = state_dict["train_seconds"]
        self.began = time.perf_counter() - state_dict["wall_seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the record of a started run, with the precision that the trainer has made of its setting."""
        self.summary = replace(self.summary, precision=str(trainer.precision))
        self._follow_block_size(trainer, pl_module)
        self._write(trainer, self._spent())

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock."""
        self.batch_began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock, add up FLOPs and memory, and log the budget so far."""
        self._follow_block_size(trainer, pl_module)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            _synchronize(pl_module.device)
        self.train_seconds += time.perf_counter() - self.batch_began
        if trainer.global_step > self.steps:  # the last micro-batch of a step
            self.steps = trainer.global_step
            self.flops += self.tokens_per_step * self.flops_per_token()
        if pl_module.device.type != "cuda" or logs_now(trainer):  # a GPU keeps the peak by itself
            self.peak_memory = max(self.peak_memory, memory_in_use(pl_module.device))
        log_step(pl_module, self._budget())

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the budget beside every validation result."""
        pl_module.log_dict(self._budget())

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Record that the run stopped: interrupted by the user, or failed."""
        self._stop(trainer, exception)

    @contextmanager
    def recording(self, trainer: pl.Trainer) -> Iterator[None]:
        """Record also what stops a run outside Lightning's loops, such as a checkpoint that cannot be written."""
        with ExitStack() as stack:
            stack.push(lambda kind, error, traceback: self._stop(trainer, error))
            yield

    def _stop(self, trainer: pl.Trainer, error: BaseException | None) -> None:
        if error is None or self.stopped:
            return
        self.stopped = True
        interrupted = isinstance(error, (KeyboardInterrupt, SystemExit))
        status: Status = "interrupted" if interrupted else "failed"
        self._write(trainer, replace(self._spent(), status=status, error=reason(error)))

    def finish(self, trainer: pl.Trainer, module: DiffusionLM, metrics: dict[str, float]) -> RunSummary:
        """Write and return the record of a finished run, given the final validation's metrics; log it with settings."""
        self._follow_block_size(trainer, module)  # a run that was resumed after its last step has not done so
        summary = replace(
            self._spent(),
            val_nll=metrics["val/nll"],
            val_nll_stderr=metrics["val/nll_stderr"],
            val_reconstruction=metrics["val/reconstruction"],
            val_prior=metrics["val/prior"],
            val_ppl=metrics["val/ppl"],
            val_bpb=metrics.get("val/bpb"),
            val_tokens=int(metrics["val/tokens"]),
            val_t_grid=None if module.objective.exact else module.num_val_times,
            status="finished",
        )
        results = {key: value for key, value in summary.to_dict().items() if key.startswith("val_")}
        known = {f"final/{key}": float(value) for key, value in results.items() if value is not None}
        log_hyperparams(trainer.loggers, self.hyperparameters, known)
        self._write(trainer, summary)
        return summary

    def _follow_block_size(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, DiffusionLM)
        if module.block_size != self.summary.block_size:
            self.summary = replace(self.summary, block_size=module.block_size)
            if trainer.is_global_zero:
                self.write_config(module.block_size)

    def _budget(self) -> dict[str, float]:
        tokens = float(self.steps * self.tokens_per_step)
        return {
            "tokens": tokens,
            "total_tokens": tokens + self.parent_tokens,
            "total_flops": self.flops + self.parent_flops,
        }

    def _spent(self) -> RunSummary:
        """Return the record with the budget so far."""
        tokens = self.steps * self.tokens_per_step
        return replace(
            self.summary,
            steps=self.steps,
            tokens_seen=tokens,
            total_tokens=tokens + self.parent_tokens,
            flops=self.flops,
            total_flops=self.flops + self.parent_flops,
            tokens_per_second=tokens * self.num_copies / self.train_seconds if self.train_seconds else None,
            peak_memory_bytes=self.peak_memory,
            wall_seconds=time.perf_counter() - self.began,
        )

    def _write(self, trainer: pl.Trainer, summary: RunSummary) -> None:
        if not trainer.is_global_zero:
            return
        try:
            summary.write(self.run_dir)
        except OSError as error:
            record = self.run_dir / SUMMARY
            if error.errno not in DISK_FULL or not record.is_file():
                raise
            overwrite_bytes(record, json_text(summary.to_dict()).encode())  # so that it says what became of the run


def memory_in_use(device: torch.device) -> int:
    """Return the peak bytes allocated on a GPU, or the bytes resident in memory now on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
