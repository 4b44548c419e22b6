"""No noise: the process of the autoregressive baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmkit.processes.base import ForwardProcess


class NoNoise(ForwardProcess):
    """alpha_t = 1 at every t: x_t = x_0, no mass anywhere.

    Args:
        vocab_size: V.
        mask_id: id that predictions never give (so that a baseline can share its vocabulary with a diffusion model).
    """

    noises = False

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (1, 0)."""
        return torch.ones_like(t), torch.zeros(t.shape[0], self.vocab_size, dtype=t.dtype, device=t.device)

    def corrupt(self, x_0: Tensor, t: Tensor, scored: Tensor, generator: torch.Generator) -> Tensor:
        """Return x_0."""
        return x_0

    def log_x0(self, logits: Tensor, x_t: Tensor) -> Tensor:
        """Softmax."""
        return logits.log_softmax(-1)
