"""The run's record: summary.json from the first step to the last, and budgets along the curves."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from dlmkit.module import DiffusionLM
from dlmkit.runs import write_summary

RESULTS = (
    "val_nll",
    "val_nll_stderr",
    "val_reconstruction",
    "val_prior",
    "val_ppl",
    "val_bpb",
    "val_tokens",
    "val_t_grid",
)


class RunRecord(pl.Callback):
    """Keeps summary.json up to date and logs the tokens and FLOPs behind every point of the curves.

    Args:
        run_dir: the run's folder.
        facts: what is known before training (names, parameters, budgets of the starting run).
        hyperparameters: flat configuration for TensorBoard's HParams tab.
        flops_per_token: training FLOPs per token of the budget, all copies of it together.
        tokens_per_step: tokens of a global batch.
        num_copies: noisy copies of each token that a step reads; speed counts each, budgets of tokens do not.
    """

    def __init__(
        self,
        run_dir: Path,
        facts: dict[str, Any],
        hyperparameters: dict[str, Any],
        flops_per_token: float,
        tokens_per_step: int,
        num_copies: int,
    ) -> None:
        self.run_dir = run_dir
        self.facts = facts
        self.hyperparameters = hyperparameters
        self.flops_per_token = flops_per_token
        self.tokens_per_step = tokens_per_step
        self.num_copies = num_copies
        self.peak_memory = 0
        self.train_seconds = 0.0
        self.batch_began = 0.0
        self.began = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run adds to."""
        return {
            "peak_memory": self.peak_memory,
            "train_seconds": self.train_seconds,
            "wall_seconds": time.perf_counter() - self.began,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what the interrupted run had used."""
        self.peak_memory = state_dict["peak_memory"]
        self.train_seconds = state_dict["train_seconds"]
        self.began = time.perf_counter() - state_dict["wall_seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the record of a run that has begun."""
        self._write(trainer, "running", {})

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock."""
        self.batch_began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock, look at the memory, and log the budget so far."""
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            _synchronise(pl_module.device)
        self.train_seconds += time.perf_counter() - self.batch_began
        self.peak_memory = max(self.peak_memory, memory_in_use(pl_module.device))
        pl_module.log_dict(self._budget(trainer.global_step))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the budget beside every validation result."""
        pl_module.log_dict(self._budget(trainer.global_step))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Say in the record that the run stopped, and whether somebody stopped it."""
        stopped = isinstance(exception, (KeyboardInterrupt, SystemExit))
        self._write(trainer, "interrupted" if stopped else "failed", {})

    def finish(self, trainer: pl.Trainer, module: DiffusionLM, metrics: dict[str, float]) -> dict[str, Any]:
        """Write and return the record of a finished run, given the final validation's metrics."""
        results = {
            "val_nll": metrics["val/nll"],
            "val_nll_stderr": metrics["val/nll_stderr"],
            "val_reconstruction": metrics["val/reconstruction"],
            "val_prior": metrics["val/prior"],
            "val_ppl": metrics["val/ppl"],
            "val_bpb": metrics.get("val/bpb"),
            "val_tokens": int(metrics["val/tokens"]),
            "val_t_grid": None if module.objective.exact else module.num_val_times,
        }
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(
                    self.hyperparameters, {f"final/{key}": value for key, value in results.items() if value is not None}
                )
                logger.save()
        return self._write(trainer, "finished", results)

    def _budget(self, step: int) -> dict[str, float]:
        tokens = float(step * self.tokens_per_step)
        return {
            "tokens": tokens,
            "total_tokens": tokens + self.facts["start_tokens"],
            "total_flops": tokens * self.flops_per_token + self.facts["start_flops"],
        }

    def _write(self, trainer: pl.Trainer, status: str, results: dict[str, Any]) -> dict[str, Any]:
        budget = self._budget(trainer.global_step)
        tokens_read = budget["tokens"] * self.num_copies
        summary = {
            **{key: value for key, value in self.facts.items() if not key.startswith("start_")},
            "steps": trainer.global_step,
            "tokens_seen": int(budget["tokens"]),
            "total_tokens": int(budget["total_tokens"]),
            "flops": budget["tokens"] * self.flops_per_token,
            "total_flops": budget["total_flops"],
            "tokens_per_second": tokens_read / self.train_seconds if self.train_seconds else None,
            "peak_memory_bytes": self.peak_memory,
            "wall_seconds": time.perf_counter() - self.began,
            **dict.fromkeys(RESULTS),
            **results,
            "status": status,
        }
        if trainer.is_global_zero:
            write_summary(self.run_dir, summary)
        return summary


def memory_in_use(device: torch.device) -> int:
    """Return the peak bytes allocated on a GPU, or the bytes resident in memory now on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
