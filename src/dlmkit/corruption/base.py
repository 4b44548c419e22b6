"""The interface of corruptions: one draw from clean sequences and times to a noised batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from dlmkit.parts import Part
from dlmkit.processes.base import ForwardProcess
from dlmkit.randomness import generator_for
from dlmkit.types import Batch, Noised, TimeDraw

DrawNoise = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]
"""(x_0 [K, l], t [C, K], scored [K, l], generator) -> x_t [C, K, l] for the K blocks, of l tokens, of one sequence."""


class Corruption(Part, ABC):
    """How a training step draws noisy copies of its sequences from the marginals of a forward process.

    The choice moves the variance of the loss, not its mean over t; evaluation always noises tokens independently. Laws
    (dlmkit.laws.corruption): each copy alone has the mean of independent noise over t.
    """

    group = "corruption"

    requires: type[ForwardProcess] = ForwardProcess  # type: ignore[type-abstract]
    """The processes whose noise can be drawn this way."""

    num_copies: int = 1
    """C, noisy copies of each sequence that a training step reads; the loss is their mean."""

    independent: bool = True
    """Whether tokens are noised independently of each other given t. Otherwise only an objective that divides by
    `Noised.noise_rate` is right, and it only in the mean over t."""

    def times(self, process: ForwardProcess, draw: TimeDraw) -> TimeDraw:
        """Return times and weights [C, ...] of the C copies, given one draw [...] for each sequence or block.

        For each copy alone the mean of weight * f(t) is the same integral.
        """
        return TimeDraw(draw.t[None], draw.weight[None])

    @abstractmethod
    def corrupt(
        self, process: ForwardProcess, x_0: Tensor, t: Tensor, scored: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Draw the C copies of each row jointly, int64 [C, B, L].

        `draw` calls this for one sequence at a time: the rows are its blocks where these have times of their own, else
        there is one row.

        Args:
            process: the noise.
            x_0: int64 [B, L].
            t: float64 [C, B], from `times`.
            scored: bool [B, L]; elsewhere x_0 stays.
            generator: on the device of x_0.
        """

    def noise_rate(self, process: ForwardProcess, t: Tensor, scored: Tensor) -> Tensor | None:
        """Return the rate at which scored tokens are noised, float64 [M]; ``None`` for the process's 1 - alpha(t).

        Args:
            process: the noise.
            t: float64 [M], times of the rows: C * B sequences, or their C * B * K blocks.
            scored: bool [M, l], the loss mask of the rows.
        """
        return None

    def draw(
        self, process: ForwardProcess, batch: Batch, draw: TimeDraw, indices: Iterable[int], *key: int | str
    ) -> Noised:
        """Return the noised batch of one pass: C * B sequences, all first copies before all second ones.

        Weights are divided by C, so that a sum over the rows is a sum over sequences of the mean over copies. The noise
        of a sequence is a function of `key` and its own index: the same at any micro-batch, accumulation and sharding.

        Args:
            process: the noise.
            batch: B clean sequences of L tokens.
            draw: [B], or [B, K] where each of the K equal blocks of a sequence has its own time.
            indices: of the sequences in the global batch.
            key: what else the draw depends on, such as seed and step.
        """
        t, weight = self.times(process, draw)
        num = len(t)
        x_t = corrupt_sequences(partial(self.corrupt, process), batch, t, indices, *key)
        t, weight, scored = t.flatten(0, 1), weight.flatten(0, 1), batch.scored.repeat(num, 1)
        segments = None if batch.segments is None else batch.segments.repeat(num, 1)
        rate = self.noise_rate(process, t.flatten(), scored.reshape(t.numel(), -1))
        return Noised(
            batch.tokens.repeat(num, 1),
            x_t.flatten(0, 1),
            t,
            scored,
            weight / num,
            segments,
            None if rate is None else rate.view(t.shape),
        )


def corrupt_sequences(draw: DrawNoise, batch: Batch, t: Tensor, indices: Iterable[int], *key: int | str) -> Tensor:
    """Return int64 [C, B, L], each sequence drawn with a generator of its own, seeded by `key` and its index.

    Args:
        draw: the noise of one sequence.
        batch: B clean sequences of L tokens.
        t: float64 [C, B], or [C, B, K] where each of the K equal blocks of a sequence has its own time.
        indices: of the sequences in the global batch, or in the validation set.
        key: what else the draw depends on.
    """

    def one(row: int, index: int) -> Tensor:
        times = t[:, row].reshape(len(t), -1)
        blocks = (times.shape[1], -1)
        tokens, scored = batch.tokens[row].view(blocks), batch.scored[row].view(blocks)
        return draw(tokens, times, scored, generator_for(batch.tokens.device, *key, index)).reshape(len(t), -1)

    return torch.stack([one(row, index) for row, index in enumerate(indices)], dim=1)
