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
from dlmkit.randomness import RowNoise
from dlmkit.text_hints import nearest
from dlmkit.types import Cache, Canvas, Denoiser, NetworkInput

S = TypeVar("S")


@dataclass(frozen=True)
class Step:
    """One reverse step from time t to time s.

    Attributes:
        index: 0 for the first step.
        num_steps: how many steps there are at most.
        t: time before the step, float64 [B].
        s: time after it, float64 [B]; 0 in the last step.
        fixed: bool [B, L]; tokens there never change in this step.
        given: bool [B, L]; tokens that the user gave.
        noise: of this step, on the device of the tokens; the only source of randomness.
        cache: what comes before the tokens, from `Denoiser.prefill` or `freeze`; ``None`` for a whole text.
    """

    index: int
    num_steps: int
    t: Tensor
    s: Tensor
    fixed: Tensor
    given: Tensor
    noise: RowNoise
    cache: Cache | None = None


@dataclass(frozen=True)
class Reading:
    """What a step read of the network's prediction.

    Attributes:
        where: bool [B, L], the positions; a row without any cost no pass of the network.
        logits: float32 [N, V], at the True entries of `where`, as the network (guided, where it is) predicted them.
    """

    where: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Stepped(Generic[S]):
    """What a step leads to.

    Attributes:
        tokens: int64 [B, L], at time s.
        state: for the next step.
        reading: what was read of the network; ``None`` where it was not called.
    """

    tokens: Tensor
    state: S
    reading: Reading | None


def read(denoiser: Denoiser, x_t: Tensor, where: Tensor, step: Step, t: Tensor | None = None) -> Reading:
    """Return the network's prediction at some positions; only rows that have any are handed to the network.

    Args:
        denoiser: the network.
        x_t: int64 [B, L].
        where: bool [B, L].
        step: with the times, the given tokens and the cache.
        t: float64 [B], another time than the step's.
    """
    inputs = NetworkInput(x_t, step.t if t is None else t, cache=step.cache, given=step.given)
    rows = where.any(-1).nonzero()[:, 0]
    if len(rows) == len(where):
        return Reading(where, denoiser(inputs).logits(where))
    if not len(rows):
        return Reading(where, torch.empty(0, 0, device=x_t.device))
    return Reading(where, denoiser(inputs.select(rows)).logits(where[rows]))


class Sampler(Part, ABC, Generic[S]):
    """A rule for the reverse steps from noise to text. The type parameter is its state between steps.

    A sampler is immutable: what changes from step to step is its state, which `init` makes and `step` returns: it is
    ``None`` or a record of per-row values with a `select`. Derived as a frozen dataclass its settings can be changed by
    `with_settings`. What happens to a row depends on that row alone, never on its neighbours in the batch.

    Laws (dlmkit.laws.samplers): with the exact predictor the samples have the data's distribution (if the sampler is
    `faithful`); fixed tokens never change; no mask is left; a row's samples are those that it has alone.
    """

    group = "sampler"

    parameterization: ClassVar[Parameterization]
    """What the network's output must mean for the step to be right."""

    needs_masks: bool = False
    """Whether the noise must only mask, so that a token that is no mask is decided."""

    reads_samples: bool = False
    """Whether which positions change depends on drawn tokens. Those that are kept are then a biased choice."""

    keeps_distribution: bool = True
    """Whether, that aside, samples with the exact predictor tend to the data's distribution as steps get finer; false
    for rules that seek likely text, or few steps."""

    block_size: int | None = None
    """Tokens per block where blocks are filled one after the other, each given the clean blocks before it."""

    @property
    def faithful(self) -> bool:
        """Whether samples with the exact predictor tend to the data's distribution as steps get finer."""
        return self.keeps_distribution and not self.reads_samples

    @property
    def has_likelihood(self) -> bool:
        """Whether the probability of a sample is known (`dlmkit.evaluation.duel`): each token is drawn once, from the
        network's own distribution, and which positions are decided depends on the state and the row's seed alone."""
        return False

    def with_settings(self, /, **settings: Any) -> Self:
        """Return a copy with other values of constructor keywords.

        Raises:
            ValueError: a keyword that this sampler does not have, or a value outside of its range.
        """
        if not settings:
            return self
        known: set[str] = {field.name for field in fields(self)} if is_dataclass(self) else set()
        for key in settings:
            if key not in known:
                names = ", ".join(sorted(known)) or "no settings"
                raise ValueError(f"{self.label} has no {key}: it has {names}{nearest(key, known)}")
        return replace(self, **settings)  # type: ignore[type-var]

    def init(self, canvas: Canvas) -> S:
        """Return the state before the first step; ``None`` for a sampler without one.

        Args:
            canvas: the given tokens; what is not fixed has no meaning yet.

        Raises:
            ValueError: given tokens that the sampler cannot work around.
        """
        return None  # type: ignore[return-value]

    def select(self, state: S, rows: Tensor) -> S:
        """Return the state of some rows, int64 [R]."""
        return state if state is None else state.select(rows)  # type: ignore[attr-defined]

    def num_steps(self, canvas: Canvas, requested: int) -> int:
        """Return how many steps this sampler takes at most on the canvas when `requested` are asked for, at least 1."""
        return requested

    def times(self, num_steps: int) -> Tensor:
        """Return the grid of times, float64 [num_steps + 1], from 1 down to 0, for a result of `num_steps()`."""
        return torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)

    def undecided(self, process: ForwardProcess, x_t: Tensor, fixed: Tensor, state: S) -> Tensor:
        """Return bool [B, L]: where a later step may still change the token. A row without any is finished."""
        return process.may_change(x_t) & ~fixed

    @abstractmethod
    def step(self, denoiser: Denoiser, process: ForwardProcess, x_t: Tensor, step: Step, state: S) -> Stepped[S]:
        """Return the tokens at time s and the state after the step.

        Args:
            denoiser: the network, in this sampler's parameterization; called as often as the rule needs, by `read`.
            process: the noise that the network was trained on.
            x_t: tokens at time t, int64 [B, L]; not written to.
            step: index, times, given tokens and noise of this step.
            state: from `init` or the step before; not written to.
        """
