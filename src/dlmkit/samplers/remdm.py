"""ReMDM: ancestral steps that may mask a decided token again, so that early errors can be repaired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor

from dlmkit.processes.base import ForwardProcess
from dlmkit.ranges import Range
from dlmkit.samplers.base import Step
from dlmkit.samplers.remasking import Confidences, Remasking


@dataclass(frozen=True)
class ReMDM(Remasking):
    """`Remasking` on the process's own alpha.

    With an exact network it only adds steps: its samples tend to the data's distribution, later than ancestral ones do.
    Source: arXiv 2503.00307 (ReMDM), section 4.1.

    Attributes:
        rule: sigma is min(eta, sigma_max) ("cap"), eta sigma_max ("rescale"), or that times the softmax over a row's
            decided tokens of minus their probability when they were decided ("conf", about one token a step; which are
            masked then depends on the tokens that were drawn).
        eta: in [0, 1]; 0 is `ancestral`.
    """

    name = "remdm"

    rule: Literal["cap", "rescale", "conf"] = "cap"
    eta: Annotated[float, Range("[0, 1]", "it is a share of the decided tokens: try 0.02")] = 0.02

    @property
    def reads_samples(self) -> bool:  # type: ignore[override]
        """Whether what is masked again depends on the probability of drawn tokens."""
        return self.rule == "conf"

    def alpha(self, process: ForwardProcess, t: Tensor) -> Tensor:
        """Return the process's alpha."""
        return process.alpha(t)

    def sigma(self, process: ForwardProcess, step: Step, masked: Tensor, state: Confidences) -> Tensor:
        """Return sigma, float64 [B, L]; under "conf" 0 at masks and given tokens."""
        alpha_s, alpha_t = self.alpha(process, step.s)[:, None], self.alpha(process, step.t)[:, None]
        most = ((1.0 - alpha_s) / alpha_t.clamp_min(1e-300)).clamp_max(1.0)
        if self.rule == "cap":
            return most.clamp_max(self.eta).expand(masked.shape)
        if self.rule == "rescale":
            return (self.eta * most).expand(masked.shape)
        # Where nothing is decided a softmax over minus infinities is NaN.
        return self.eta * most * (-state.prob).softmax(-1).nan_to_num(0.0).masked_fill(masked | step.fixed, 0.0)
