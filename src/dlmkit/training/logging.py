"""What a step logs, and when: a step that is not logged costs no call and never waits for the device."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
import torch
from torch import Tensor


def logs_now(trainer: pl.Trainer) -> bool:
    """Return whether the loggers get this optimizer step's values: every `trainer.log_every_n_steps` steps."""
    return bool(trainer._logger_connector.should_update_logs)


def log_step(module: pl.LightningModule, values: Mapping[str, Tensor | float], shown: tuple[str, ...] = ()) -> None:
    """Log values of this step, scalars, if it is logged at all.

    They come to the CPU in one transfer. Left on a GPU, a value of the progress bar would be fetched after each batch,
    and numbers would be copied there one by one: each time the program would wait for the device.

    Args:
        module: that logs.
        values: name -> value; tensors are on one device.
        shown: names that the progress bar shows.
    """
    if not logs_now(module.trainer):
        return
    on_device = [value for value in values.values() if isinstance(value, Tensor)]
    fetched = iter(torch.stack(on_device).cpu().double() if on_device else ())
    for name, value in values.items():
        number = next(fetched) if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        module.log(name, number, prog_bar=name in shown)
