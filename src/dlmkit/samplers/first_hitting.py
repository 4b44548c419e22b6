"""First-hitting sampling: one position at a time, at the time when ancestral sampling would change it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlmkit.parameterizations.base import Parameterization
from dlmkit.parameterizations.score import interpolating
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.base import ForwardProcess
from dlmkit.samplers.ancestral import unmask
from dlmkit.samplers.base import Step, Stepped
from dlmkit.samplers.drawing import ShapedSampler
from dlmkit.types import Canvas, Denoiser


@dataclass(frozen=True)
class Clock:
    """The time of each row.

    Attributes:
        noisy: 1 - alpha of the row's time, float64 [B].
    """

    noisy: Tensor

    def select(self, rows: Tensor) -> Clock:
        """Return the times of some rows, int64 [R]."""
        return Clock(self.noisy[rows])


@dataclass(frozen=True)
class FirstHitting(ShapedSampler[Clock]):
    """With m masks left, 1 - alpha(t') = (1 - alpha(t)) u^(1/m), and one mask, each as likely, is replaced at t'.

    The law of ancestral sampling in the limit of many steps, without its error, in one pass for each token; whatever
    number of steps was requested. The time is only read by a network that is conditioned on it. Source: arXiv
    2409.02908, section 4.
    """

    parameterization: ClassVar[Parameterization] = X0LeaveOneOut()
    needs_masks = True

    @property
    def has_likelihood(self) -> bool:
        """Whether the network's own distribution is drawn from; the order is the row's seed's."""
        return self.neutral

    def init(self, canvas: Canvas) -> Clock:
        """Return pure noise."""
        return Clock(torch.ones(len(canvas.tokens), dtype=torch.float64, device=canvas.tokens.device))

    def num_steps(self, canvas: Canvas, requested: int) -> int:
        """Return the most free positions of a row, at least 1."""
        return max(1, int(canvas.num_free.max()))

    def step(
        self, denoiser: Denoiser, process: ForwardProcess, x_t: Tensor, step: Step, state: Clock
    ) -> Stepped[Clock]:
        """Replace one mask in each row that has any."""
        masked = process.may_change(x_t) & ~step.fixed
        left = masked.sum(-1).clamp_min(1)
        noisy = state.noisy * step.noise.uniform("time", 1)[:, 0] ** (1.0 / left)
        order = step.noise.uniform("order", x_t.shape[1]).masked_fill(~masked, -1.0)
        chosen = torch.zeros_like(masked).scatter_(1, order.argmax(-1, keepdim=True), True) & masked
        t = interpolating(process).schedule.inverse(1.0 - noisy)
        done = unmask(self, denoiser, process, x_t, step, chosen, t)
        return Stepped(done.tokens, Clock(noisy), done.reading)
