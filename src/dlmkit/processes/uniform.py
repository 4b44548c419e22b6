"""Uniform noise: a token stays or is replaced by a uniformly drawn one."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmkit.processes.base import ScheduledProcess, _noisy
from dlmkit.schedules.base import Schedule


class Uniform(ScheduledProcess):
    """mass_t = (1 - alpha_t) / N over the N tokens other than the mask.

    Source: arXiv 2107.03006 (D3PM), section 3.1; arXiv 2412.10193 (UDLM), equation 6.

    Args:
        schedule: alpha(t).
        vocab_size: V, mask token included.
        mask_id: id that noise never draws and predictions never give, or ``None`` (then N = V).
    """

    def __init__(self, schedule: Schedule, vocab_size: int, mask_id: int | None) -> None:
        super().__init__(schedule, vocab_size, mask_id)
        self.num_tokens = vocab_size if mask_id is None else vocab_size - 1

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha [B], mass [B, V])."""
        alpha = self.schedule.alpha(t)
        share = torch.full((self.vocab_size,), 1.0 / self.num_tokens, dtype=alpha.dtype, device=alpha.device)
        if self.mask_id is not None:
            share[self.mask_id] = 0.0
        return alpha, (1.0 - alpha)[:, None] * share

    def corrupt(self, x_0: Tensor, t: Tensor, scored: Tensor, generator: torch.Generator) -> Tensor:
        """Replace each scored token, with probability 1 - alpha(t), by a uniform draw (which may be itself)."""
        noisy = _noisy(self.schedule.alpha(t), x_0, generator) & scored
        return torch.where(noisy, self.prior((x_0.shape[0], x_0.shape[1]), generator), x_0)

    def log_x0(self, logits: Tensor, x_t: Tensor) -> Tensor:
        """Softmax over all tokens but the mask; x_t plays no part (the prediction is leave-one-out)."""
        if self.mask_id is None:
            return logits.log_softmax(-1)
        forbidden = torch.zeros(self.vocab_size, dtype=torch.bool, device=logits.device)
        forbidden[self.mask_id] = True
        return logits.masked_fill(forbidden, float("-inf")).log_softmax(-1)

    def prior(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Draw uniform tokens, never the mask."""
        draw = torch.randint(self.num_tokens, shape, device=generator.device, generator=generator)
        return draw if self.mask_id is None else draw + (draw >= self.mask_id)
