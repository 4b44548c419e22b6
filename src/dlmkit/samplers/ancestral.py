"""Ancestral sampling: the exact posterior of any process, drawn in two stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlmkit.parameterizations.base import Parameterization
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.base import ForwardProcess
from dlmkit.ranges import check_fields
from dlmkit.samplers.base import Sampler, Step
from dlmkit.samplers.drawing import Filter, Temperature, TopK, TopP, categorical
from dlmkit.tensors import at_positions
from dlmkit.types import Denoiser, NetworkInput


@dataclass(frozen=True)
class Ancestral(Sampler[None]):
    """x_s ~ q(x_s | x_t, x_theta) at every free position, independently.

    First which positions change (probability 1 - q(x_s = x_t)), then to which token: drawn jointly, a token's share is
    its probability times the step size, and float32 noise loses it (arXiv 2409.02908). Under absorbing noise this is
    arXiv 2410.17891's equation 4, and the head runs at the masked positions only.

    Attributes:
        temperature, top_k, top_p: see :class:`dlmkit.samplers.drawing.Filter`; applied to x_theta.
    """

    temperature: Temperature
    top_k: TopK
    top_p: TopP

    parameterization: ClassVar[Parameterization] = X0LeaveOneOut()

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def filter(self) -> Filter:
        """The filter on the logits."""
        return Filter(self.temperature, self.top_k, self.top_p)

    def step(
        self,
        denoiser: Denoiser,
        process: ForwardProcess,
        x_t: Tensor,
        fixed: Tensor,
        step: Step,
        state: None,
        generator: torch.Generator,
    ) -> tuple[Tensor, None]:
        """Return the tokens at time s."""
        active = process.may_change(x_t) & ~fixed
        if not active.any():
            return x_t, None
        now, s, t = x_t[active], at_positions(step.s, active), at_positions(step.t, active)
        logits = self.filter(denoiser(NetworkInput(x_t, step.t)).logits(active))
        x_theta = self.parameterization.log_x0(logits, now, t, process).double().exp()
        posterior = process.posterior(now, x_theta, s, t)

        stay = posterior.gather(-1, now[:, None])[:, 0]
        uniform = torch.rand(stay.shape, dtype=stay.dtype, device=stay.device, generator=generator)
        moves = uniform >= stay
        others = posterior[moves].scatter(-1, now[moves][:, None], 0.0)
        new = now.clone()
        new[moves] = categorical(others, generator)
        tokens = x_t.clone()
        tokens[active] = new
        return tokens, None
