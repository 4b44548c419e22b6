"""Ancestral sampling: the exact posterior of any process, drawn in two stages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlmkit.processes.base import ForwardProcess
from dlmkit.samplers.base import Denoiser, Sampler, Step
from dlmkit.samplers.filtering import Filter, categorical


class Ancestral(Sampler):
    """x_s ~ q(x_s | x_t, x_theta) at every free position, independently.

    First which positions change (probability 1 - q(x_s = x_t)), then to which token: drawn jointly, a token's share is
    its probability times the step size, and float32 noise loses it (arXiv 2409.02908). Under absorbing noise this is
    arXiv 2410.17891's equation 4, and the head runs at the masked positions only.

    Args:
        temperature, top_k, top_p: see :class:`dlmkit.samplers.filtering.Filter`; applied to x_theta.
    """

    expects = "x0_loo"

    def __init__(self, temperature: float, top_k: int | None, top_p: float) -> None:
        self.filter = Filter(temperature, top_k, top_p)

    def step(
        self,
        denoiser: Denoiser,
        process: ForwardProcess,
        x_t: Tensor,
        fixed: Tensor,
        step: Step,
        state: Any,
        generator: torch.Generator,
    ) -> tuple[Tensor, Any]:
        """Return the tokens at time s."""
        open_ = process.may_change(x_t) & ~fixed
        if not open_.any():
            return x_t, state
        now = x_t[open_]
        row = torch.arange(x_t.shape[0], device=x_t.device)[:, None].expand(x_t.shape)[open_]
        log_x0 = process.log_x0(self.filter(denoiser(x_t, step.t).logits(open_)), now)
        posterior = process.posterior(now, log_x0.double().exp(), step.s[row], step.t[row])

        stay = posterior.gather(-1, now[:, None])[:, 0]
        uniform = torch.rand(stay.shape, dtype=stay.dtype, device=stay.device, generator=generator)
        moves = uniform >= stay
        others = posterior[moves].scatter(-1, now[moves][:, None], 0.0)
        new = now.clone()
        new[moves] = categorical(others, generator)
        tokens = x_t.clone()
        tokens[open_] = new
        return tokens, state
