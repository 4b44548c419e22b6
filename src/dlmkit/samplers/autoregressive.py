"""Left-to-right generation for the autoregressive baseline."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlmkit.processes.base import ForwardProcess
from dlmkit.samplers.base import Denoiser, Sampler, Step
from dlmkit.samplers.filtering import Filter, categorical
from dlmkit.types import Canvas


class Autoregressive(Sampler):
    """One token per step, each drawn given all tokens before it. The number of steps is the number of free positions.

    Args:
        temperature, top_k, top_p: see :class:`dlmkit.samplers.filtering.Filter`.
    """

    expects = "next"

    def __init__(self, temperature: float, top_k: int | None, top_p: float) -> None:
        self.filter = Filter(temperature, top_k, top_p)

    def init(self, canvas: Canvas) -> int:
        """Return the first position to fill.

        Raises:
            ValueError: a fixed token to the right of a free one: a causal model cannot fill in the middle.
        """
        if (canvas.fixed[:, 1:] & ~canvas.fixed[:, :-1]).any() or (canvas.fixed != canvas.fixed[:1]).any():
            raise ValueError(
                "an autoregressive model reads left to right and cannot fill in the middle: give a prompt alone,"
                " or use a diffusion checkpoint for infilling"
            )
        return int(canvas.fixed[0].sum())

    def num_steps(self, canvas: Canvas, requested: int) -> int:
        """Return the number of free positions, whatever was requested."""
        return canvas.tokens.shape[1] - int(canvas.fixed[0].sum())

    def step(
        self,
        denoiser: Denoiser,
        process: ForwardProcess,
        x_t: Tensor,
        fixed: Tensor,
        step: Step,
        state: Any,
        generator: torch.Generator,
    ) -> tuple[Tensor, Any]:
        """Fill one more position."""
        position: int = state
        prefix = x_t[:, : position + 1]  # the token at `position` itself is not seen: the network is shifted
        here = torch.zeros_like(prefix, dtype=torch.bool)
        here[:, position] = True
        logits = denoiser(prefix, step.t).logits(here)
        tokens = x_t.clone()
        tokens[:, position] = categorical(self.filter(logits).softmax(-1), generator)
        return tokens, position + 1
