"""Left-to-right generation for the autoregressive baseline."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dlmkit.parameterizations.next_token import NextToken
from dlmkit.processes.base import ForwardProcess
from dlmkit.samplers.base import Reading, Step, Stepped, read
from dlmkit.samplers.drawing import ShapedSampler
from dlmkit.tensors import categorical
from dlmkit.types import Cache, Canvas, Denoiser


@dataclass(frozen=True)
class Progress:
    """The state of left-to-right generation.

    Attributes:
        position: the next position to fill.
        cache: of the tokens before it; ``None`` before the first step.
    """

    position: int
    cache: Cache | None

    def select(self, rows: Tensor) -> Progress:
        """Return the state of some rows, int64 [R]."""
        return Progress(self.position, None if self.cache is None else self.cache.select(rows))


@dataclass(frozen=True)
class Autoregressive(ShapedSampler[Progress]):
    """One token per step, each drawn given all tokens before it; one step for each position after the shortest prompt.

    The tokens before the current one are handed to the network once (`Denoiser.prefill`).
    """

    parameterization = NextToken()

    @property
    def has_likelihood(self) -> bool:
        """Whether the network's own distribution is drawn from."""
        return self.neutral

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

    def undecided(self, process: ForwardProcess, x_t: Tensor, fixed: Tensor, state: Progress) -> Tensor:
        """Return bool [B, L]: the free positions from the next one on."""
        return ~fixed & (torch.arange(x_t.shape[1], device=x_t.device) >= state.position)

    def step(
        self, denoiser: Denoiser, process: ForwardProcess, x_t: Tensor, step: Step, state: Progress
    ) -> Stepped[Progress]:
        """Fill one more position in the sequences where it is free."""
        position = state.position
        seen = 0 if state.cache is None else state.cache.length
        cache = denoiser.prefill(x_t[:, seen:position], cache=state.cache)
        here = slice(position, position + 1)  # its token is not read: the network is shifted
        free = ~step.fixed[:, here]  # prompts of unequal length: a longer one takes no part yet
        logits = read(denoiser, x_t[:, here], free, replace(step, given=step.given[:, here], cache=cache)).logits
        where, before = (torch.zeros_like(step.fixed) for _ in range(2))
        where[:, here], before[:, :position] = free, True
        # By position, not by step: which step this is depends on the shortest prompt of the batch.
        uniform = step.noise.at(step=0).uniform("tokens", x_t.shape[1])[where]
        tokens = x_t.clone()
        if free.any():
            tokens[where] = categorical(self.shaped(logits, x_t, where, before).softmax(-1), uniform)
        return Stepped(tokens, Progress(position + 1, cache), Reading(where, logits))


def _shortest_prompt(canvas: Canvas) -> int:
    return int(canvas.fixed.sum(-1).min())
