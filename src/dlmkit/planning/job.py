"""What is planned: the parts and settings of a run that decide its cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from dlmkit.backbones.base import Backbone
from dlmkit.corruption.base import Corruption
from dlmkit.objectives.base import Objective
from dlmkit.processes.base import ForwardProcess
from dlmkit.training.sharding import check_divisible

Strategy = Literal["single", "ddp", "fsdp2"]


@dataclass(frozen=True)
class Precision:
    """The types of numbers of a run.

    Attributes:
        name: as trainer.precision has it.
        weights: type of the weights, their gradients and the optimizer's states.
        products: type of matrix products.
    """

    name: str
    weights: torch.dtype
    products: torch.dtype

    @property
    def autocast(self) -> bool:
        """Whether weights are turned into the type of products where they are used."""
        return self.weights != self.products


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("32-true", torch.float32, torch.float32),
        Precision("bf16-mixed", torch.float32, torch.bfloat16),
        Precision("16-mixed", torch.float32, torch.float16),
        Precision("bf16-true", torch.bfloat16, torch.bfloat16),
        Precision("16-true", torch.float16, torch.float16),
    )
}
PRECISIONS |= {"32": PRECISIONS["32-true"], "bf16": PRECISIONS["bf16-mixed"], "16": PRECISIONS["16-mixed"]}


def precision_of(name: str, device_type: str) -> Precision:
    """Return a precision by its name in trainer.precision; "auto" is bf16-mixed on a GPU and 32-true on a CPU.

    Raises:
        ValueError: one whose memory is not known here.
    """
    if name == "auto":
        name = "32-true" if device_type == "cpu" else "bf16-mixed"
    if name not in PRECISIONS:
        raise ValueError(
            f"trainer.precision {name!r} cannot be planned: choose one of {', '.join(p.name for p in _each_once())}"
        )
    return PRECISIONS[name]


def _each_once() -> list[Precision]:
    return list(dict.fromkeys(PRECISIONS.values()))


@dataclass(frozen=True)
class Job:
    """A run, as far as its cost depends on it.

    Attributes:
        backbones: the network on the meta device, by whether it recomputes activations in the backward pass (gradient
            checkpointing); one that cannot has no entry for true.
        objective: loss.
        process: noise.
        corruption: how the noise of a batch is drawn.
        ar_weight: of the auxiliary next-token loss; 0 for none.
        optimizer: parameter groups -> optimizer.
        length: L.
        batch_size: sequences of an optimizer step, over all ranks and micro-batches.
        accumulate: micro-batches of an optimizer step.
        tokens: of the budget.
        ranks: processes, one device each.
        strategy: how they share the work.
        precision: types of numbers.
        checkpointing: whether the run recomputes activations.
        device_type: "cpu" or "cuda".
        noisy_share: the largest share of a micro-batch's positions that is masked, in [0, 1]: the head of an objective
            that needs noisy positions alone runs at as many.
    """

    backbones: Mapping[bool, Backbone]
    objective: Objective[Any]
    process: ForwardProcess
    corruption: Corruption
    ar_weight: float
    optimizer: Callable[[list[dict[str, Any]]], Optimizer]
    length: int
    batch_size: int
    accumulate: int
    tokens: int
    ranks: int
    strategy: Strategy
    precision: Precision
    checkpointing: bool
    device_type: str
    noisy_share: float = 1.0

    @property
    def backbone(self) -> Backbone:
        """The network as the run has it."""
        return self.backbones[self.checkpointing]

    def check_divisible(self) -> None:
        """Check that FSDP2 can split weights and states.

        Raises:
            ValueError: it cannot.
        """
        check_divisible(self.backbone, self.optimizer([{"params": [nn.Parameter(torch.zeros(1))]}]))

    @property
    def divisible(self) -> bool:
        """Whether FSDP2 can split weights and states."""
        try:
            self.check_divisible()
        except ValueError:
            return False
        return True

    @property
    def block_size(self) -> int | None:
        """Tokens per block of block diffusion."""
        return self.objective.block_size

    @property
    def micro_size(self) -> int:
        """Sequences that one device holds at a time."""
        return self.batch_size // (self.accumulate * self.ranks)
