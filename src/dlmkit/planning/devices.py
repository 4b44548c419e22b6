"""Devices by name: memory and peak rates, from their makers' data sheets (dense products, no sparsity)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        name: as users type it.
        kind: "cpu" or "cuda".
        memory: bytes that a process can have.
        tflops: peak rate of matrix products by the type of their numbers, 1e12 operations per second; ``None`` where
            the device has no such products, or where nobody has said.
        source: where the numbers are from.
    """

    name: str
    kind: str
    memory: float
    tflops: dict[torch.dtype, float | None]
    source: str

    def peak_flops(self, dtype: torch.dtype) -> float:
        """Return the peak rate of products of a type, operations per second.

        Raises:
            ValueError: it is not known.
        """
        rate = self.tflops.get(dtype)
        if rate is None:
            raise ValueError(
                f"--on {self.name} has no known peak rate of {str(dtype).removeprefix('torch.')} products: give it with"
                " --peak, in TFLOP/s, or another trainer.precision"
            )
        return rate * 1e12


def _gpu(name: str, memory_gib: float, float32: float, bfloat16: float | None, float16: float) -> Device:
    rates = {torch.float32: float32, torch.bfloat16: bfloat16, torch.float16: float16}
    return Device(name, "cuda", memory_gib * GIB, rates, "data sheet, dense")


DEVICES = {
    device.name: device
    for device in (
        _gpu("b200", 178.0, 80.0, 2250.0, 2250.0),
        _gpu("h200", 139.0, 67.0, 989.0, 989.0),
        _gpu("h100", 79.0, 67.0, 989.0, 989.0),
        _gpu("a100", 79.0, 19.5, 312.0, 312.0),
        _gpu("a100-40", 39.0, 19.5, 312.0, 312.0),
        _gpu("l40s", 44.0, 91.6, 362.0, 362.0),
        _gpu("l4", 22.0, 30.3, 121.0, 121.0),
        _gpu("rtx4090", 23.5, 82.6, 165.0, 165.0),
        _gpu("v100", 31.7, 15.7, None, 125.0),
        Device("cpu", "cpu", 16.0 * GIB, {}, "none: a CPU's are not in a table"),
    )
}
"""Memory is what torch reports of the device, a little less than its name says."""


def device_of(name: str, memory_gib: float | None, peak_tflops: float | None) -> Device:
    """Return a device by name, with another memory or another peak where they are given.

    Raises:
        ValueError: an unknown name, or a number that is not positive.
    """
    if name not in DEVICES:
        raise ValueError(f"--on {name!r} is unknown: choose one of {', '.join(DEVICES)}, and state --memory and --peak")
    for flag, value in (("--memory", memory_gib), ("--peak", peak_tflops)):
        if value is not None and not 0.0 < value < 1e9:
            raise ValueError(f"{flag} {value} is not a positive number: give it in GiB, or in TFLOP/s")
    device = DEVICES[name]
    if memory_gib is not None:
        device = replace(device, memory=memory_gib * GIB)
    if peak_tflops is not None:
        rates: dict[torch.dtype, float | None] = dict.fromkeys(
            (torch.float32, torch.bfloat16, torch.float16), peak_tflops
        )
        device = replace(device, tflops=rates, source="stated with --peak")
    return device
