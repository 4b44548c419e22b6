"""torch.compile of a network's layers, for training steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from dlmkit.module import DiffusionLM
from dlmkit.notices import notice
from dlmkit.ranges import checked


class CompileLayers(pl.Callback):
    """Compiles the network's layers, one by one, when training starts: equal layers are compiled once.

    The layers stay the modules that they are, so that weights keep their names in checkpoints and exports. Passes
    without gradients (validation, samples), whose shapes vary, are not compiled.

    Args:
        mode: true, false, or "auto": on a GPU whose network is not sharded, and not on a CPU, where it costs a minute
            and a C++ compiler. With "auto" a layer that cannot be compiled runs as it is, and a line says so; with true
            it is an error. It saves passes over memory, and may cost the fused attention kernel: docs/performance.md
            has a case where it is slower.
    """

    @checked
    def __init__(self, mode: bool | Literal["auto"]) -> None:
        self.mode = mode

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compile before a strategy wraps or shards the network; what is compiled already stays."""
        assert isinstance(pl_module, DiffusionLM)
        if stage == "fit" and wanted(self.mode, trainer):
            compile_layers(pl_module.backbone.sharding_units(), fall_back=self.mode == "auto")


def wanted(mode: bool | Literal["auto"], trainer: pl.Trainer) -> bool:
    """Return whether layers are compiled, by a rule and not by timing."""
    strategy = trainer.strategy
    whole = isinstance(strategy, (SingleDeviceStrategy, DDPStrategy))
    return mode is True or (mode == "auto" and strategy.root_device.type == "cuda" and whole)


def compile_layers(layers: list[nn.Module], fall_back: bool) -> None:
    """Compile each layer in place, as `nn.Module.compile` does, for passes with gradients.

    Args:
        layers: of a network.
        fall_back: whether all run as they are from the first one on that cannot be compiled; a line says so.
    """
    shared = _Compiled(fall_back)
    for layer in layers:
        layer._compiled_call_impl = shared.call_of(layer)


class _Compiled:
    """What the compiled layers of a network share: whether compiling has failed."""

    def __init__(self, fall_back: bool) -> None:
        self.fall_back = fall_back
        self.failed = False

    def call_of(self, layer: nn.Module) -> Callable[..., Any]:
        """Return the function that calls a layer, compiled or not."""
        plain, compiled = layer._call_impl, torch.compile(layer._call_impl)

        def call(*arguments: Any, **keywords: Any) -> Any:
            if self.failed or not torch.is_grad_enabled():
                return plain(*arguments, **keywords)
            try:
                return compiled(*arguments, **keywords)
            except TorchDynamoException as error:
                if not self.fall_back:
                    raise
                self.failed = True
                reason = str(error).strip().partition("\n")[0]
                notice(f"layers run as they are, since torch.compile failed ({reason}): compile=false spares it")
                return plain(*arguments, **keywords)

        return call
