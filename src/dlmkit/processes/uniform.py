"""Uniform noise: a token stays or is replaced by a uniformly drawn one."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmkit.processes.base import InterpolatingProcess, VocabSize, draw_noisy
from dlmkit.ranges import checked
from dlmkit.schedules.base import Schedule


class Uniform(InterpolatingProcess):
    """mass_t = (1 - alpha_t) / N over the N tokens other than the mask.

    Source: arXiv 2107.03006 (D3PM), section 3.1; arXiv 2412.10193 (UDLM), equation 6.

    Args:
        schedule: alpha(t).
        vocab_size: V, mask token included.
        mask_id: id that is neither drawn as noise nor predicted, or ``None`` (then N = V).
    """

    @checked
    def __init__(self, schedule: Schedule, vocab_size: VocabSize, mask_id: int | None) -> None:
        super().__init__(schedule, vocab_size, mask_id)
        self.num_noise_tokens = self.num_tokens

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.vocab_size if self.mask_id is None else self.vocab_size - 1

    def noise_distribution(self, like: Tensor) -> Tensor:
        """Return 1 / N at every token but the mask."""
        share = torch.full((self.vocab_size,), 1.0 / self.num_tokens, dtype=like.dtype, device=like.device)
        if self.mask_id is not None:
            share[self.mask_id] = 0.0
        return share

    def corrupt(self, x_0: Tensor, t: Tensor, scored: Tensor, generator: torch.Generator) -> Tensor:
        """Replace each scored token, with probability 1 - alpha(t), by a uniform draw (which may be itself)."""
        noisy = draw_noisy(self.schedule.alpha(t), x_0, generator) & scored
        return torch.where(noisy, self.prior((x_0.shape[0], x_0.shape[1]), generator), x_0)

    def prior(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Draw uniform tokens, never the mask."""
        draw = torch.randint(self.num_tokens, shape, device=generator.device, generator=generator)
        return draw if self.mask_id is None else draw + (draw >= self.mask_id)
