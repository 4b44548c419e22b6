"""Every token is noised independently given t."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmkit.corruption.base import Corruption
from dlmkit.processes.base import ForwardProcess


class Independent(Corruption):
    """x_t ~ q_t(. | x_0) in each position: one copy, drawn by the process itself."""

    def corrupt(
        self, process: ForwardProcess, x_0: Tensor, t: Tensor, scored: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Draw one copy, int64 [1, B, L]."""
        return process.corrupt(x_0, t[0], scored, generator)[None]
