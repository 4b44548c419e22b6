"""Absorbing noise: a token stays or becomes the mask."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmkit.processes.base import InterpolatingProcess, VocabSize, draw_noisy
from dlmkit.ranges import checked
from dlmkit.schedules.base import Schedule


class Absorbing(InterpolatingProcess):
    """mass_t = (1 - alpha_t) at the mask token.

    Source: arXiv 2107.03006 (D3PM), section 3.1; arXiv 2410.17891, equations 2 to 4. A masked position carries no
    information about its own token, so p(x_0 | x_t) there is the leave-one-out posterior.

    Args:
        schedule: alpha(t).
        vocab_size: V, mask token included.
        mask_id: id of the mask token; required.

    Raises:
        ValueError: there is no mask token.
    """

    mask_only = True
    num_noise_tokens = 1

    @checked
    def __init__(self, schedule: Schedule, vocab_size: VocabSize, mask_id: int | None) -> None:
        if mask_id is None:
            raise ValueError("process=absorbing needs a mask token, mask_id is null: choose a tokenizer with a mask")
        super().__init__(schedule, vocab_size, mask_id)
        self.mask_id: int = mask_id

    @property
    def num_tokens(self) -> int:
        """V - 1."""
        return self.vocab_size - 1

    def noise_distribution(self, like: Tensor) -> Tensor:
        """Return 1 at the mask token, 0 elsewhere."""
        at_mask = torch.zeros(self.vocab_size, dtype=like.dtype, device=like.device)
        at_mask[self.mask_id] = 1.0
        return at_mask

    def corrupt(self, x_0: Tensor, t: Tensor, scored: Tensor, generator: torch.Generator) -> Tensor:
        """Replace each scored token by the mask with probability 1 - alpha(t)."""
        masked = draw_noisy(self.schedule.alpha(t), x_0, generator) & scored
        return x_0.masked_fill(masked, self.mask_id)

    def prior(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Return all masks."""
        return torch.full(shape, self.mask_id, dtype=torch.int64, device=generator.device)
