"""Parts and callbacks with state, which a resumed run must have again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from dlmkit.module import DiffusionLM
from dlmkit.objectives.masked import MaskedElbo
from dlmkit.processes.absorbing import Absorbing
from dlmkit.types import Noised, Prediction, StepOutput, TokenLoss


class Rescaled(MaskedElbo):
    """The masked bound over a running mean of its own losses."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.mean = 1.0

    def __call__(self, prediction: Prediction, noised: Noised, process: Absorbing) -> TokenLoss:
        output = super().__call__(prediction, noised, process)
        return replace(output, loss=output.loss / self.mean)

    def collect(self, output: StepOutput) -> Tensor:
        return torch.tensor([output.loss.double().sum().item(), float(output.scored.sum())], dtype=torch.float64)

    def update(self, totals: Tensor) -> None:
        self.mean = 0.7 * self.mean + 0.3 * (totals[0] / totals[1]).item() * self.mean

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean = state["mean"]


class Forgetful(Rescaled):
    """One that is not restored."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class Growth(pl.Callback):
    """Doubles the block size after every fourth step, up to 8."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, DiffusionLM)
        assert pl_module.block_size is not None
        if trainer.global_step % 4 == 0:
            pl_module.block_size = min(2 * pl_module.block_size, 8)
