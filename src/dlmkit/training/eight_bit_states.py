"""torchao's AdamW8bit with states that a checkpoint of the kit holds. Imports torchao: see `adamw_8bit`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torchao.optim import AdamW8bit as TorchaoAdamW8bit
from torchao.optim.subclass_8bit import OptimState8bit
from typing_extensions import override

from dlmkit.training.adamw_8bit import EightBitStates

SIGNED = {"exp_avg": True, "exp_avg_sq": False}
"""Moments, and whether they have a sign: the table of values that a code stands for follows from that."""


class AdamW8bit(TorchaoAdamW8bit, EightBitStates):
    """AdamW with moments of 8 bits; see `adamw_8bit`.

    A step is compiled on a GPU, as torchao does it. On a CPU it runs as it is: compiling takes seconds for each shape
    of a weight, and a C++ compiler.
    """

    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the weights; the closure, which is the pass through the network, keeps its own compiling."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        on_cpu = all(parameter.device.type == "cpu" for group in self.param_groups for parameter in group["params"])
        with torch.compiler.set_stance("force_eager") if on_cpu else contextlib.nullcontext():
            super().step()
        return loss

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the state with each moment of 8 bits as plain tensors: its codes, and the scales of its blocks."""
        state: dict[str, Any] = super().state_dict()
        return {**state, "state": {number: _plain(values) for number, values in state["state"].items()}}

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, to the bit."""
        restored = {number: _restored(values) for number, values in state_dict["state"].items()}
        super().load_state_dict({**state_dict, "state": restored})

    @staticmethod
    @override
    def _subclass_zeros(p: Tensor, signed: bool, block_size: int) -> OptimState8bit:
        codes = torch.zeros(p.shape, dtype=torch.uint8, device=p.device)
        scale = torch.zeros(codes.numel() // block_size, device=p.device)
        return OptimState8bit(codes, scale, _table(signed, p.device), signed, dtype=p.dtype)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {"codes": value.codes, "scale": value.scale} if isinstance(value, OptimState8bit) else value
        for name, value in values.items()
    }


def _restored(values: Mapping[str, Any]) -> dict[str, Any]:
    def restored(name: str, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        codes, scale, signed = value["codes"], value["scale"], SIGNED[name]
        return OptimState8bit(codes, scale, _table(signed, codes.device), signed, dtype=torch.float32)

    return {name: restored(name, value) for name, value in values.items()}


@cache
def _table(signed: bool, device: torch.device) -> Tensor:
    """Return the 256 values that codes stand for, one table for all states on a device."""
    zeros = OptimState8bit.zeros((256,), signed, device=device)
    table: Tensor = zeros.qmap
    return table
