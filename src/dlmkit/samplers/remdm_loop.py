"""ReMDM's loop: most of the text, then steps that mask and replace at a constant noise level, then the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dlmkit.parameterizations.score import interpolating
from dlmkit.processes.base import ForwardProcess
from dlmkit.ranges import Range, check_fields
from dlmkit.samplers.base import Step
from dlmkit.samplers.remasking import Confidences, Remasking

Time = Annotated[float, Range("(0, 1)", "it is a time between data (0) and noise (1)")]


@dataclass(frozen=True)
class ReMDMLoop(Remasking):
    """Ancestral until `alpha_on` of the tokens are decided, sigma = eta at that level, then ancestral to the end.

    From t = 1 to `t_on` alpha rises from 0 to `alpha_on`, evenly; it stays until `t_off`, while tokens are masked again
    with probability eta and as many masks replaced; then it rises to 1. The network reads the time of that alpha.
    Source: arXiv 2503.00307 (ReMDM), section 4.2; the defaults are those of its experiments.

    A step of the loop moves several tokens at a time whatever the number of steps is, so that a bias of the order of
    eta stays with any of them (`tests/laws/test_remasking.py` has figures): unless eta is 0 it is not `faithful`.

    Attributes:
        eta: in [0, 1], share of the decided tokens that a step of the loop masks again, at most (1 - alpha_on) /
            alpha_on.
        t_on: beginning of the loop, in (0, 1).
        t_off: its end, below `t_on`.
        alpha_on: share of decided tokens during the loop, in (0, 1).
    """

    name = "remdm_loop"

    eta: Annotated[float, Range("[0, 1]", "it is a share of the decided tokens: try 0.02")] = 0.02
    t_on: Time = 0.55
    t_off: Time = 0.05
    alpha_on: Annotated[float, Range("(0, 1)", "it is a share of the tokens: try 0.9")] = 0.9

    def __post_init__(self) -> None:
        check_fields(self)
        if self.t_off >= self.t_on:
            raise ValueError(f"t_off {self.t_off} is not below t_on {self.t_on}: the loop runs from t_on down to t_off")
        most = (1.0 - self.alpha_on) / self.alpha_on
        if self.eta > most:
            raise ValueError(
                f"eta {self.eta} is more than (1 - alpha_on) / alpha_on = {most:.4g}: fewer tokens are masked than that"
                " would need; set a smaller eta or alpha_on"
            )

    @property
    def keeps_distribution(self) -> bool:  # type: ignore[override]
        """Whether nothing is masked again, and the network's own distribution is drawn from."""
        return self.neutral and self.eta == 0.0

    def alpha(self, process: ForwardProcess, t: Tensor) -> Tensor:
        """Return the share of decided tokens at t, which does not depend on the process's schedule."""
        before = self.alpha_on * (1.0 - t) / (1.0 - self.t_on)
        after = 1.0 - (1.0 - self.alpha_on) * t / self.t_off
        return torch.where(t > self.t_on, before, torch.where(t > self.t_off, self.alpha_on, after))

    def sigma(self, process: ForwardProcess, step: Step, masked: Tensor, state: Confidences) -> Tensor:
        """Return eta in steps that lie inside the loop, float64 [B, L]."""
        in_loop = (step.t <= self.t_on) & (step.s >= self.t_off)
        return torch.where(in_loop, self.eta, 0.0).double()[:, None].expand(masked.shape)

    def network_time(self, process: ForwardProcess, step: Step) -> Tensor:
        """Return the time at which the process leaves as large a share clean."""
        return interpolating(process).schedule.inverse(self.alpha(process, step.t))
