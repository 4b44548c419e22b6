"""No noise: the process of the autoregressive baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmkit.processes.base import Coefficients, ForwardProcess


class NoNoise(ForwardProcess):
    """alpha_t = 1 at every t: x_t = x_0, no mass anywhere.

    Args:
        vocab_size: V.
        mask_id: id that is never predicted (so that a baseline can share its vocabulary with a diffusion model).
    """

    name = "none"
    has_noise = False

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return (1, 0)."""
        return Coefficients(
            torch.ones_like(t), torch.zeros(t.shape[0], self.vocab_size, dtype=t.dtype, device=t.device)
        )

    def corrupt(self, x_0: Tensor, t: Tensor, scored: Tensor, generator: torch.Generator) -> Tensor:
        """Return x_0."""
        return x_0
