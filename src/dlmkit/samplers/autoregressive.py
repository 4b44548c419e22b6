"""Left-to-right generation for the autoregressive baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmkit.parameterizations.next_token import NextToken
from dlmkit.processes.base import ForwardProcess
from dlmkit.ranges import check_fields
from dlmkit.samplers.base import Sampler, Step
from dlmkit.samplers.drawing import Filter, Temperature, TopK, TopP, categorical
from dlmkit.types import Cache, Canvas, Denoiser, NetworkInput


@dataclass(frozen=True)
class Progress:
    """The state of left-to-right generation.

    Attributes:
        position: the next position to fill.
        cache: of the tokens before it; ``None`` before the first step.
    """

    position: int
    cache: Cache | None


@dataclass(frozen=True)
class Autoregressive(Sampler[Progress]):
    """One token per step, each drawn given all tokens before it; one step for each position after the shortest prompt.

    Attributes:
        temperature, top_k, top_p: see :class:`dlmkit.samplers.drawing.Filter`.
    """

    temperature: Temperature
    top_k: TopK
    top_p: TopP

    parameterization = NextToken()

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def filter(self) -> Filter:
        """The filter on the logits."""
        return Filter(self.temperature, self.top_k, self.top_p)

    def init(self, canvas: Canvas) -> Progress:
        """Return the first position to fill; prompts may be of unequal length.

        Raises:
            ValueError: a fixed token to the right of a free one: a causal model cannot fill in the middle.
        """
        if (canvas.fixed[:, 1:] & ~canvas.fixed[:, :-1]).any():
            raise ValueError(
                "an autoregressive model generates left to right and cannot fill in the middle: give a prompt alone,"
                " or use a diffusion checkpoint for infilling"
            )
        return Progress(_shortest_prompt(canvas), None)

    def num_steps(self, canvas: Canvas, requested: int) -> int:
        """Return the number of positions after the shortest prompt, or 1 if there are none, whatever was requested."""
        return max(1, canvas.tokens.shape[1] - _shortest_prompt(canvas))

    def step(
        self,
        denoiser: Denoiser,
        process: ForwardProcess,
        x_t: Tensor,
        fixed: Tensor,
        step: Step,
        state: Progress,
        generator: torch.Generator,
    ) -> tuple[Tensor, Progress]:
        """Fill one more position in the sequences where it is free."""
        position = state.position
        if position >= x_t.shape[1]:  # everything was given
            return x_t, state
        seen = 0 if state.cache is None else state.cache.length
        cache = denoiser.prefill(x_t[:, seen:position], cache=state.cache)
        here = x_t[:, position : position + 1]  # its token is not read: the network is shifted
        logits = denoiser(NetworkInput(here, step.t, cache=cache)).logits(torch.ones_like(here, dtype=torch.bool))
        drawn = categorical(self.filter(logits).softmax(-1), generator)
        tokens = x_t.clone()
        tokens[:, position] = torch.where(fixed[:, position], x_t[:, position], drawn)
        return tokens, Progress(position + 1, cache)


def _shortest_prompt(canvas: Canvas) -> int:
    return int(canvas.fixed.sum(-1).min())
