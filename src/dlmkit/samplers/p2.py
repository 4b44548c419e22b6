"""P2: each step drafts the whole text, keeps the surest tokens and masks the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from dlmkit.parameterizations.base import Parameterization
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.base import ForwardProcess
from dlmkit.ranges import Range
from dlmkit.samplers.ancestral import fill
from dlmkit.samplers.base import Reading, Sampler, Step, Stepped, read
from dlmkit.samplers.confidence import Start
from dlmkit.samplers.drawing import Shaped
from dlmkit.samplers.ordered import time_of
from dlmkit.samplers.ranking import ranking
from dlmkit.types import Canvas, Denoiser


@dataclass(frozen=True)
class P2(Shaped, Sampler[Start]):
    """Step k of T draws a token for every mask and keeps the floor(n k / T) of a row's n free tokens that score best.

    The score of a new token is log p_i of it; that of a token that was kept before is `eta` times log p_i of it, read
    at its own position (which the network was not trained on). Which tokens stay depends on the tokens that were drawn,
    so the data's distribution is not kept. Source: arXiv 2502.03540 (P2, self-planning).

    Attributes:
        eta: at least 0; 0 never masks a kept token again, 1 treats kept and new tokens alike, more masks kept ones
            sooner.
    """

    name = "p2"

    eta: Annotated[float, Range("[0, 1000]", "use 1 to treat kept and new tokens alike, 0 to keep them")] = 1.0

    parameterization: ClassVar[Parameterization] = X0LeaveOneOut()
    needs_masks = True
    reads_samples = True
    keeps_distribution = False

    def init(self, canvas: Canvas) -> Start:
        """Return the number of free positions."""
        return Start(canvas.num_free)

    def undecided(self, process: ForwardProcess, x_t: Tensor, fixed: Tensor, state: Start) -> Tensor:
        """Return bool [B, L]: all free positions, as any may be masked again."""
        return ~fixed

    def step(
        self, denoiser: Denoiser, process: ForwardProcess, x_t: Tensor, step: Step, state: Start
    ) -> Stepped[Start]:
        """Draft, keep the surest and mask the rest."""
        assert process.mask_id is not None
        free, masked = ~step.fixed, process.may_change(x_t) & ~step.fixed
        reading = read(denoiser, x_t, free, step, time_of(x_t, process))
        if not free.any():
            return Stepped(x_t, state, reading)
        new = Reading(masked, reading.logits[masked[free]])
        draft = fill(self, process, x_t, step, new)
        log_probs = reading.logits.float().log_softmax(-1)
        score = log_probs.gather(-1, draft[free][:, None])[:, 0]
        score = torch.where(masked[free], score, self.eta * score)
        keep = torch.div(state.num_free * (step.index + 1), step.num_steps, rounding_mode="floor")
        kept = ranking(free, score, log_probs, step.noise).first(keep)
        return Stepped(torch.where(free & ~kept, process.mask_id, draft), state, reading)
