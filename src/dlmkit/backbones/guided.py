"""Classifier-free guidance: a network whose predictions lean towards what is given."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dlmkit.types import Cache, Denoiser, NetworkInput, Prediction
from dlmkit.unfused import WithoutFusing


@dataclass(frozen=True)
class Guided:
    """A denoiser with logits (1 + scale) log p(. | x_t) - scale log p(. | x_t without the given tokens).

    The second pass reads masks in place of the given tokens (`NetworkInput.given`); rows in which nothing is given are
    left as they are. Each call costs two passes. Source: arXiv 2207.12598, equation 6, as arXiv 2410.18514 (scaling
    masked diffusion) uses it with masks.

    Attributes:
        denoiser: the network.
        scale: at least 0; 0 is the network itself.
        mask_id: id of the mask token.
    """

    denoiser: Denoiser
    scale: float
    mask_id: int

    @property
    def supports_cache(self) -> bool:
        """No: a prefix that is kept has no version without the given tokens."""
        return False

    def __call__(self, inputs: NetworkInput) -> Prediction:
        """Return the guided prediction at the positions of `inputs.x_t`.

        Raises:
            ValueError: the input has a cache, or no given tokens are named.
        """
        if inputs.cache is not None or inputs.given is None:
            raise ValueError(
                "guidance needs the whole text in each pass: set guidance to 0, or take a sampler without blocks or"
                " caches"
            )
        without = replace(inputs, x_t=inputs.x_t.masked_fill(inputs.given, self.mask_id))
        return GuidedPrediction(self.denoiser(inputs), self.denoiser(without), self.scale)

    def prefill(self, tokens: Tensor, block_size: int | None = None, cache: Cache | None = None) -> Cache:
        """Return the network's cache, which `__call__` refuses."""
        return self.denoiser.prefill(tokens, block_size, cache)

    def freeze(self, tokens: Tensor, t: Tensor, start: int, stop: int, around: str) -> Cache:
        """Return the network's cache, which `__call__` refuses."""
        return self.denoiser.freeze(tokens, t, start, stop, around)


@dataclass(frozen=True)
class GuidedPrediction(WithoutFusing):
    """The guided prediction; everything follows from its logits.

    Attributes:
        conditional: in view of the given tokens.
        unconditional: without them.
        scale: see `Guided`.
    """

    conditional: Prediction
    unconditional: Prediction
    scale: float

    def logits(self, where: Tensor) -> Tensor:
        """Return guided logits [N, V] at `where`."""
        toward = self.conditional.logits(where).log_softmax(-1)
        away = self.unconditional.logits(where).log_softmax(-1)
        # Where both are -inf, as at the mask token, their difference is NaN.
        return torch.where(toward == float("-inf"), toward, toward + self.scale * (toward - away))

    def in_float32(self) -> GuidedPrediction:
        """Return the same from both predictions' float32 logits."""
        return GuidedPrediction(self.conditional.in_float32(), self.unconditional.in_float32(), self.scale)
