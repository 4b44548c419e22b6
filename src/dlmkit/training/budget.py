"""Floating-point operations of training, per token of the budget."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch

from dlmkit.backbones.base import Backbone
from dlmkit.corruption.base import Corruption
from dlmkit.objectives.base import Objective
from dlmkit.objectives.block import num_blocks
from dlmkit.processes.base import ForwardProcess
from dlmkit.types import TimeDraw

NUM_TIMES = 1024
"""Midpoints of the mean over continuous time."""

_known: WeakKeyDictionary[Backbone, dict[tuple[Any, ...], float]] = WeakKeyDictionary()
"""Network -> settings that its FLOPs were counted at -> FLOPs: counting weights at each step took 1% of a small one."""


class Trained(Protocol):
    """What decides the operations of a step; a DiffusionLM has it, and a plan's job."""

    @property
    def backbone(self) -> Backbone:
        """The network."""

    @property
    def objective(self) -> Objective[Any]:
        """The loss."""

    @property
    def process(self) -> ForwardProcess:
        """The noise."""

    @property
    def corruption(self) -> Corruption:
        """How noise is drawn for a batch."""

    @property
    def ar_weight(self) -> float:
        """Weight of an auxiliary next-token loss; 0 for none."""

    @property
    def block_size(self) -> int | None:
        """Tokens per block of block diffusion."""


def flops_per_token(module: Trained, length: int) -> float:
    """Return forward + backward operations per token that a step trains on, with the module's present settings.

    A token counts once, however many noisy copies of it the step reads. The operations are those of all its copies,
    of the clean half of a pass of block diffusion, and of the pass of an auxiliary next-token loss.

    Args:
        module: backbone, objective, process, corruption and auxiliary loss.
        length: L.
    """
    settings = (length, module.block_size, module.ar_weight, module.objective, module.process, module.corruption)
    known = _known.setdefault(module.backbone, {})
    if settings not in known:
        known[settings] = _counted(module, length)
    return known[settings]


def _counted(module: Trained, length: int) -> float:
    network = module.backbone
    share = head_fraction(module.objective, module.process, module.corruption)
    flops = network.flops_per_token(length, share)
    if num_blocks(length, module.block_size) > 1:  # the clean half of the pass
        flops += network.flops_per_token(length, head_fraction=0.0)
    flops *= module.corruption.num_copies
    if module.ar_weight:
        flops += network.flops_per_token(length, head_fraction=1.0)
    return flops


@lru_cache(maxsize=16)
def head_fraction(objective: Objective[Any], process: ForwardProcess, corruption: Corruption) -> float:
    """Return the expected share of scored positions at which the head runs, for times uniform over [0, 1].

    Where noise only masks and the objective needs noisy positions only, it is the mean mask rate 1 - alpha(t).
    """
    if not (objective.noisy_positions_only and process.mask_only):
        return 1.0
    if objective.num_steps is None:
        t = (torch.arange(NUM_TIMES, dtype=torch.float64) + 0.5) / NUM_TIMES
    else:
        t = torch.arange(1, objective.num_steps + 1, dtype=torch.float64) / objective.num_steps
    copies = corruption.times(process, TimeDraw(t, torch.ones_like(t))).t
    return float((1.0 - process.alpha(copies.flatten())).mean())
