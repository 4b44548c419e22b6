"""Callbacks that spoil a run's gradient or weights, for runs that are started by their configuration."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch

WEIGHTS: dict[int, list[torch.Tensor]] = {}
"""Number of finished steps -> the weights after them."""


class Poison(pl.Callback):
    """Puts a value into the gradient, or into the weights, at the given steps; remembers the weights of every step.

    Of several ranks the last one alone does so.
    """

    def __init__(self, steps: list[int], value: str, into: str) -> None:
        self.steps, self.value, self.into = list(steps), float(value.removeprefix("number_")), into

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step in self.steps and self.into == "weights":
            next(pl_module.parameters()).data.fill_(self.value)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        last = trainer.global_rank == trainer.world_size - 1
        if trainer.global_step in self.steps and self.into == "gradient" and last:
            parameter = next(pl_module.parameters())
            assert parameter.grad is not None
            parameter.grad.view(-1)[0] = self.value

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        WEIGHTS[trainer.global_step] = [parameter.detach().clone() for parameter in pl_module.parameters()]


class SpoilAtTheEnd(pl.Callback):
    """Makes all weights NaN when training ends."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for parameter in pl_module.parameters():
            parameter.data.fill_(float("nan"))
