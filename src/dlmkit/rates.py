"""How fast a device is: seconds of a piece of work, and the rate of matrix products, the peak of utilisation."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch

SIZE = {"cpu": 1024, "cuda": 8192}
"""Rows of the square matrices of a product."""


def best_seconds(work: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Return the least seconds of several calls, after one that is not timed.

    On a CPU they are processor time over threads, so that other programs do not count; on a GPU those of the clock,
    until its work is done.

    Args:
        work: what is timed.
        device: that it runs on.
        repeats: calls that are timed.
    """
    work()
    found = []
    for _ in range(repeats):
        begin = _clock(device)
        work()
        found.append(_clock(device) - begin)
    return max(min(found), 1e-9)


@cache
def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the rate of a square matrix product, FLOP/s, on the threads that torch uses."""
    size = SIZE.get(device.type, SIZE["cpu"])
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2.0 * size**3 / best_seconds(lambda: left @ right, device, repeats=5)


def _clock(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time() / torch.get_num_threads()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
