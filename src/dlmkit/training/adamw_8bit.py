"""AdamW whose two moments take a byte each per weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from dlmkit.extras import extra, without_warnings

WORD = "optimizer=adamw_8bit"


class EightBitStates:
    """A mark of the optimizer: its states belong to whole weights, and cannot be divided over processes otherwise."""

    working: Mapping[str, int] = {"cpu": 53, "cuda": 0}
    """Bytes for each number of the largest weight while it steps, by kind of device: measured on a CPU, where it is not
    compiled; compiled, a step reads and writes its states in one pass."""


def adamw_8bit(
    params: Sequence[dict[str, Any]], lr: float, betas: Sequence[float], eps: float, weight_decay: float
) -> Optimizer:
    """Return an AdamW with moments of 8 bits, in blocks of 256 with a scale each; arithmetic is in float32.

    Source: arXiv 2110.02861 (block-wise dynamic quantization), as torchao has it. Weights of fewer than 4,096 numbers,
    or no multiple of 256, keep moments in their own type.

    Args:
        params: groups of the optimizer.
        lr: learning rate.
        betas: what a step leaves of the averages before, in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: decoupled, as in AdamW.

    Raises:
        ValueError: torchao is not installed.
    """
    extra("torchao.optim", "quantized", WORD)
    with without_warnings():
        from dlmkit.training.eight_bit_states import AdamW8bit
    optimizer: Optimizer = AdamW8bit(params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay)
    return optimizer
