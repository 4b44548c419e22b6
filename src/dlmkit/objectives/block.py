"""Block diffusion: autoregressive over blocks, diffusion inside each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dlmkit.objectives.base import Objective
from dlmkit.parts import Part
from dlmkit.processes.base import ForwardProcess
from dlmkit.ranges import Tokens, checked
from dlmkit.types import ClosedForm, Noised, Prediction, TokenLoss, WeightedNLL, WeightedValues


class BlockElbo(Objective[Any]):
    """nll = sum over blocks b of another objective's nll for block b, given the clean blocks before it.

    Each block has a time of its own, and one pass over [x_t | x_0] predicts all of them. For block_size = 1 and
    absorbing noise a masked token is predicted from the clean ones before it, which is the exact autoregressive
    likelihood of that network; for block_size = L it is `within` itself. Source: arXiv 2503.09573 (BD3-LM), equation 8
    and section 3.2. Its clipped noise schedules are a choice of times, `t_sampler=clipped`.

    Args:
        block_size: tokens per block, at least 1; the length is a multiple of it, or less than it (one block).
        within: the objective inside a block.

    Raises:
        ValueError: `block_size` is below 1, or `within` is exact or in blocks itself.
    """

    name = "block"

    @checked
    def __init__(self, block_size: Tokens, within: Objective[Any]) -> None:
        if within.exact or within.block_size is not None:
            raise ValueError(
                f"within={within.name}: give a diffusion objective for the tokens of a block, such as masked"
            )
        self.block_size: int = block_size
        self.within = within
        self.parameterization = within.parameterization
        self.requires = within.requires
        self.num_steps = within.num_steps
        self.noisy_positions_only = within.noisy_positions_only
        self.divides_by_noise_rate = within.divides_by_noise_rate

    def __call__(self, prediction: Prediction, noised: Noised, process: ForwardProcess) -> TokenLoss:
        """Return the losses [B, L] of all blocks; each block is a sequence to the objective inside."""
        shape = noised.x_0.shape
        result = self.within(*fold_blocks(prediction, noised), process)
        return TokenLoss(result.loss.view(shape), result.nll.view(shape), result.fused)

    def inner_parts(self) -> Mapping[str, Part]:
        """Return the objective inside a block."""
        return {"within": self.within}


def fold_blocks(prediction: Prediction, noised: Noised) -> tuple[Prediction, Noised]:
    """Return both with a row for each block, [B * K, L / K], where a sequence has K times; else as they are."""
    if noised.t.ndim == 1:
        return prediction, noised
    blocks = (noised.t.numel(), -1)
    rows = Noised(
        noised.x_0.reshape(blocks),
        noised.x_t.reshape(blocks),
        noised.t.flatten(),
        noised.scored.reshape(blocks),
        noised.weight.flatten(),
        None if noised.segments is None else noised.segments.reshape(blocks),
        None if noised.noise_rate is None else noised.noise_rate.flatten(),
    )
    return _FoldedPrediction(prediction, noised.x_0.shape), rows


def num_blocks(length: int, block_size: int | None) -> int:
    """Return K, the blocks of a sequence of `length` tokens: 1 without blocks.

    Raises:
        ValueError: blocks of `block_size` do not fill `length`.
    """
    if block_size is None or length <= block_size:
        return 1
    if length % block_size:
        raise ValueError(
            f"length {length} is no multiple of objective.block_size {block_size}: choose a block_size that divides it,"
            f" or a length such as {length // block_size * block_size}"
        )
    return length // block_size


class _FoldedPrediction:
    """A prediction for [B, L] addressed by blocks, [B * K, L / K]: the same positions in the same order."""

    def __init__(self, prediction: Prediction, shape: torch.Size) -> None:
        self._prediction = prediction
        self._shape = shape

    def logits(self, where: Tensor) -> Tensor:
        return self._prediction.logits(where.view(self._shape))

    def token_log_prob(self, tokens: Tensor, where: Tensor) -> Tensor:
        return self._prediction.token_log_prob(tokens.view(self._shape), where.view(self._shape))

    def weighted_nll(self, tokens: Tensor, where: Tensor, weight: Tensor) -> WeightedNLL:
        return self._prediction.weighted_nll(tokens.view(self._shape), where.view(self._shape), weight)

    def map_logits(self, function: Callable[..., Tensor], where: Tensor, *arguments: Tensor) -> Tensor:
        return self._prediction.map_logits(function, where.view(self._shape), *arguments)

    def weighted(self, form: ClosedForm, where: Tensor, weight: Tensor, *arguments: Tensor) -> WeightedValues:
        return self._prediction.weighted(form, where.view(self._shape), weight, *arguments)

    def in_float32(self) -> Prediction:
        return _FoldedPrediction(self._prediction.in_float32(), self._shape)
