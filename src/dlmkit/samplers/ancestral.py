"""Ancestral sampling: the exact posterior of any process, drawn in two stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dlmkit.parameterizations.base import Parameterization
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.base import ForwardProcess
from dlmkit.samplers.base import Reading, Step, Stepped, read
from dlmkit.samplers.drawing import Shaped, ShapedSampler
from dlmkit.tensors import at_positions, categorical
from dlmkit.types import Denoiser


@dataclass(frozen=True)
class Ancestral(ShapedSampler[None]):
    """x_s ~ q(x_s | x_t, x_theta) at every free position, independently.

    First which positions change (probability 1 - q(x_s = x_t)), then to which token: drawn jointly, a token's share is
    its probability times the step size, and float32 noise loses it (arXiv 2409.02908).

    Under absorbing noise (arXiv 2410.17891, equation 4) which positions change does not depend on the network: it is
    drawn first, the head runs at these positions alone, and a text in which none changes costs no pass. So many steps
    cost at most one pass for each token.
    """

    parameterization: ClassVar[Parameterization] = X0LeaveOneOut()

    def step(self, denoiser: Denoiser, process: ForwardProcess, x_t: Tensor, step: Step, state: None) -> Stepped[None]:
        """Return the tokens at time s."""
        if process.mask_only:
            where = leaving(process, x_t, step)
            return unmask(self, denoiser, process, x_t, step, where, parameterization=self.parameterization)
        active = process.may_change(x_t) & ~step.fixed
        reading = read(denoiser, x_t, active, step)
        if not active.any():
            return Stepped(x_t, None, reading)
        now, s, t = x_t[active], at_positions(step.s, active), at_positions(step.t, active)
        logits = self.shaped(reading.logits, x_t, active, step.fixed)
        x_theta = self.parameterization.log_x0(logits, now, t, process).double().exp()
        posterior = process.posterior(now, x_theta, s, t)

        stay = posterior.gather(-1, now[:, None])[:, 0]
        length = x_t.shape[1]
        moves = step.noise.uniform("moves", length)[active] >= stay
        others = posterior[moves].scatter(-1, now[moves][:, None], 0.0)
        new = now.clone()
        new[moves] = categorical(others, step.noise.uniform("tokens", length)[active][moves])
        tokens = x_t.clone()
        tokens[active] = new
        return Stepped(tokens, None, reading)


def leaving(process: ForwardProcess, x_t: Tensor, step: Step) -> Tensor:
    """Return bool [B, L]: the masks that ancestral steps under absorbing noise replace, each with probability

    (alpha_s - alpha_t) / (1 - alpha_t)."""
    stay = (1.0 - process.alpha(step.s)) / (1.0 - process.alpha(step.t)).clamp_min(1e-300)
    return process.may_change(x_t) & ~step.fixed & (step.noise.uniform("moves", x_t.shape[1]) >= stay[:, None])


def unmask(
    shape: Shaped,
    denoiser: Denoiser,
    process: ForwardProcess,
    x_t: Tensor,
    step: Step,
    where: Tensor,
    t: Tensor | None = None,
    parameterization: Parameterization = X0LeaveOneOut(),  # noqa: B008 (it has no state)
) -> Stepped[None]:
    """Return the step that replaces the masks at `where` (bool [B, L]), each by a draw from its own distribution.

    Args:
        shape: of the distribution.
        denoiser: the network.
        process: noise that only masks.
        x_t: int64 [B, L].
        step: with the noise.
        where: the positions.
        t: what the network reads as the time, if not the step's.
        parameterization: of the network's output.
    """
    reading = read(denoiser, x_t, where, step, t)
    if not where.any():
        return Stepped(x_t, None, reading)
    at = at_positions(step.t if t is None else t, where)
    log_x0 = parameterization.log_x0(reading.logits, x_t[where], at, process)
    return Stepped(fill(shape, process, x_t, step, Reading(where, log_x0)), None, reading)


def fill(shape: Shaped, process: ForwardProcess, x_t: Tensor, step: Step, reading: Reading) -> Tensor:
    """Return tokens [B, L] with a draw at each position that was read."""
    where = reading.where
    if not where.any():
        return x_t
    logits = shape.shaped(reading.logits, x_t, where, ~process.may_change(x_t))
    tokens = x_t.clone()
    tokens[where] = categorical(logits.softmax(-1), step.noise.uniform("tokens", x_t.shape[1])[where])
    return tokens
