"""Training FLOPs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlmkit.module import DiffusionLM


def flops_per_token(module: DiffusionLM, length: int) -> float:
    """Return the training FLOPs (forward and backward) per token of the budget, as the module is set now.

    All noisy copies of a sequence count, the second pass of block diffusion over the clean tokens (without a head), and
    the pass of an auxiliary next-token loss.

    Args:
        module: network, process and objective.
        length: tokens per sequence.
    """
    backbone, process, objective = module.backbone, module.process, module.objective
    flops = backbone.flops_per_token(length, objective.head_fraction(process))
    if objective.num_times(length) > 1:
        flops += backbone.flops_per_token(length, head_fraction=0.0)
    flops *= process.num_copies
    if module.ar_weight:
        flops += backbone.flops_per_token(length, head_fraction=1.0)
    return flops
