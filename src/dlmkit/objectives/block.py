"""Block diffusion: autoregressive over blocks, diffusion inside each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dlmkit.objectives.base import Objective
from dlmkit.processes.base import ForwardProcess
from dlmkit.types import Batch, Context, Network, Noised, Predictor, TokenLoss


class Block(Objective):
    """nll = sum over blocks b of another objective's nll for block b, given the clean blocks before it.

    Each block has a time of its own, and one pass over [x_t | x_0] predicts all of them. For block_size = 1 and
    absorbing noise a masked token is predicted from the clean ones before it, which is the exact autoregressive
    likelihood of that network; for block_size = L it is `within` itself. Source: arXiv 2503.09573 (BD3-LM), equation 8
    and section 3.2. Its clipped noise schedules are a choice of times, `t_sampler=clipped`.

    Args:
        block_size: tokens per block, at least 1; the length is a multiple of it, or less than it (one block).
        within: the objective inside a block.
    """

    def __init__(self, block_size: int, within: Objective) -> None:
        if block_size < 1:
            raise ValueError(f"block_size {block_size} is below 1: give the tokens of a block, such as 16")
        if within.exact or within.block_size is not None:
            raise ValueError(
                f"within {type(within).__name__}: give a diffusion objective for the tokens of a block, such as Masked"
            )
        self.block_size: int = block_size
        self.within = within
        self.predicts = within.predicts
        self.continuous = within.continuous

    def __call__(self, prediction: Predictor, noised: Noised, process: ForwardProcess) -> TokenLoss:
        """Return the losses [B, L] of all blocks; each block is a sequence to the objective inside."""
        shape = noised.x_0.shape
        result = self.within(*self.rows(prediction, noised), process)
        return TokenLoss(result.loss.view(shape), result.nll.view(shape))

    def rows(self, prediction: Predictor, noised: Noised) -> tuple[Predictor, Noised]:
        """Return both with a row for each block."""
        blocks = (noised.t.numel(), -1)
        rows = Noised(
            noised.x_0.reshape(blocks),
            noised.x_t.reshape(blocks),
            noised.t.flatten(),
            noised.scored.reshape(blocks),
            noised.weight.flatten(),
        )
        return _InBlocks(prediction, noised.x_0.shape), rows

    def log_marginal(self, logits: Tensor, x_t: Tensor, t: Tensor, process: ForwardProcess) -> Tensor:
        """Return that of the objective inside."""
        return self.within.log_marginal(logits, x_t, t, process)

    def check(self, process: ForwardProcess) -> None:
        """Refuse what the objective inside refuses."""
        self.within.check(process)

    def ask(self, network: Network, batch: Batch, x_t: Tensor, t: Tensor) -> Predictor:
        """Let the network read the clean tokens too."""
        return network(x_t, t, batch.segments, Context(batch.tokens, self.block_size))

    def num_times(self, length: int) -> int:
        """Return the number of blocks.

        Raises:
            ValueError: blocks of `block_size` do not fill `length`.
        """
        if length > self.block_size and length % self.block_size:
            raise ValueError(
                f"length {length} is no multiple of objective.block_size {self.block_size}: choose a block_size that"
                f" divides it, or a length such as {length // self.block_size * self.block_size}"
            )
        return max(1, length // self.block_size)

    def noise_time(self, t: Tensor) -> Tensor:
        """Return that of the objective inside."""
        return self.within.noise_time(t)

    def head_fraction(self, process: ForwardProcess) -> float:
        """Return that of the objective inside."""
        return self.within.head_fraction(process)


class _InBlocks:
    """A prediction for [B, L] to those who ask about blocks, [B * K, L / K]: the same positions in the same order."""

    def __init__(self, prediction: Predictor, shape: torch.Size) -> None:
        self._prediction = prediction
        self._shape = shape

    def logits(self, where: Tensor) -> Tensor:
        return self._prediction.logits(where.view(self._shape))

    def token_log_prob(self, tokens: Tensor, where: Tensor, weight: Tensor | None = None) -> Tensor:
        return self._prediction.token_log_prob(tokens.view(self._shape), where.view(self._shape), weight)

    def map_logits(self, function: Callable[..., Tensor], where: Tensor, *arguments: Tensor) -> Tensor:
        return self._prediction.map_logits(function, where.view(self._shape), *arguments)
