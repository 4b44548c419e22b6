"""The interface of samplers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor

from dlmkit.parameterizations.base import Parameterization
from dlmkit.parts import Part
from dlmkit.processes.base import ForwardProcess
from dlmkit.types import Canvas, Denoiser

S = TypeVar("S")


@dataclass(frozen=True)
class Step:
    """One reverse step from time t to time s.

    Attributes:
        index: 0 for the first step.
        num_steps: how many steps there are.
        t: time before the step, float64 [B].
        s: time after it, float64 [B]; 0 in the last step.
    """

    index: int
    num_steps: int
    t: Tensor
    s: Tensor


class Sampler(Part, ABC, Generic[S]):
    """A rule for the reverse steps from noise to text. The type parameter is its state between steps.

    A sampler is immutable: what changes from step to step is its state, which `init` makes and `step` returns. Derived
    as a frozen dataclass its settings can be changed by `with_settings`.

    Laws (dlmkit.laws.samplers): with the exact predictor the samples have the data's distribution (unless the sampler
    is not `faithful`); fixed tokens never change; no mask is left.
    """

    group = "sampler"

    parameterization: ClassVar[Parameterization]
    """What the network's output must mean for the step to be right."""

    faithful: bool = True
    """Whether samples with the exact predictor tend to the data's distribution as steps get finer; false for samplers
    that seek likely text instead."""

    block_size: int | None = None
    """Tokens per block where blocks are filled one after the other, each given the clean blocks before it."""

    def with_settings(self, **settings: Any) -> Self:
        """Return a copy with other values of constructor keywords.

        Raises:
            ValueError: a keyword that this sampler does not have, or a value outside of its range.
        """
        if not settings:
            return self
        known: set[str] = {field.name for field in fields(self)} if is_dataclass(self) else set()
        for key in settings:
            if key not in known:
                raise ValueError(f"{self.label} has no {key}: it has {', '.join(sorted(known)) or 'no settings'}")
        return replace(self, **settings)  # type: ignore[type-var]

    def init(self, canvas: Canvas) -> S:
        """Return the state before the first step; ``None`` for a sampler without one.

        Args:
            canvas: the given tokens; what is not fixed has no meaning yet.

        Raises:
            ValueError: given tokens that the sampler cannot work around.
        """
        return None  # type: ignore[return-value]

    def num_steps(self, canvas: Canvas, requested: int) -> int:
        """Return how many steps this sampler takes on the canvas when `requested` are asked for, at least 1."""
        return requested

    def times(self, num_steps: int) -> Tensor:
        """Return the grid of times, float64 [num_steps + 1], from 1 down to 0, for a result of `num_steps()`."""
        return torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)

    @abstractmethod
    def step(
        self,
        denoiser: Denoiser,
        process: ForwardProcess,
        x_t: Tensor,
        fixed: Tensor,
        step: Step,
        state: S,
        generator: torch.Generator,
    ) -> tuple[Tensor, S]:
        """Return the tokens [B, L] at time s and the state after the step.

        Args:
            denoiser: the network, in this sampler's parameterization; called as often as the rule needs.
            process: the noise that the network was trained on.
            x_t: tokens at time t, int64 [B, L]; not written to.
            fixed: bool [B, L]; tokens there never change.
            step: index and times of this step.
            state: from `init` or the step before; not written to.
            generator: on the device of x_t; the only source of randomness.
        """
