"""Steps whose loss or gradient is not finite: the run stops there, or leaves the step out."""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from dlmkit.module import DiffusionLM
from dlmkit.ranges import Range, checked
from dlmkit.training.totals import StepTotals
from dlmkit.types import Batch


class FiniteSteps(pl.Callback):
    """Stops a run at the first step with a loss or gradient that is NaN or infinite, or skips such steps.

    The numbers are those that the module reduces over ranks at each step anyway, so that all ranks decide alike and
    nothing waits for the device once more. Under 16-mixed precision, where the loss scale is found by overflows,
    gradients are the scaler's affair and only the loss is looked at.

    Args:
        policy: "stop", or "skip": leave the optimizer step out, with its weight decay and its moments, and go on. The
            budget and the learning-rate schedule go on as if it had been taken.
        max_skipped: steps that "skip" leaves out in all before the run stops.
    """

    @checked
    def __init__(
        self,
        policy: Literal["stop", "skip"],
        max_skipped: Annotated[int, Range("[0, 1000000000]", "give the steps that may be left out, such as 10")],
    ) -> None:
        self.policy = policy
        self.max_skipped = max_skipped
        self.num_skipped = 0
        self._tokens: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """Return how many steps were skipped."""
        return {"num_skipped": self.num_skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.num_skipped = state_dict["num_skipped"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over what the module does with such steps."""
        assert isinstance(pl_module, DiffusionLM)
        module = pl_module
        module.on_non_finite = lambda totals: self._stop_or_skip(trainer, module, totals)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Keep the tokens of the step's micro-batches, for the fingerprint."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._tokens.clear()
        self._tokens.append(batch.tokens)

    def _stop_or_skip(self, trainer: pl.Trainer, module: DiffusionLM, totals: StepTotals) -> None:
        """Stop, or take the gradients away.

        Raises:
            ValueError: the run stops.
        """
        precision = trainer.precision_plugin
        if isinstance(precision, MixedPrecision) and precision.scaler is not None and math.isfinite(totals.loss):
            return
        rows = [row for tokens in self._tokens for row in trainer.strategy.all_gather(tokens).flatten(0, -2)]
        loss = totals.loss / max(float(totals.num_scored), 1.0)
        where = (
            f"step {trainer.global_step} has loss {loss:g} and gradient norm {totals.grad_norm:g} in the batch"
            f" {fingerprint(rows)}"
        )
        if self.policy == "stop":
            raise ValueError(
                f"{where}: lower optimizer.lr or trainer.gradient_clip_val, or leave such steps out with"
                " non_finite.policy=skip"
            )
        if self.num_skipped == self.max_skipped:
            raise ValueError(
                f"{where}, after {self.num_skipped} skipped steps: lower optimizer.lr, or raise non_finite.max_skipped"
            )
        self.num_skipped += 1
        module.log("train/skipped_steps", float(self.num_skipped))
        for parameter in module.parameters():
            parameter.grad = None  # optimizers leave out what has none


def fingerprint(rows: list[Tensor]) -> str:
    """Return 16 hex digits of the sequences of a global batch, int64 [L] each, in whatever order they are."""
    hashes = sorted(hashlib.sha256(row.cpu().numpy().tobytes()).digest() for row in rows)
    return hashlib.sha256(b"".join(hashes)).hexdigest()[:16]
