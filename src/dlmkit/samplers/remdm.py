"""ReMDM: ancestral steps that may mask a decided token again, so that early errors can be repaired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from dlmkit.parameterizations.base import Parameterization
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.base import ForwardProcess
from dlmkit.ranges import Range
from dlmkit.samplers.ancestral import unmask
from dlmkit.samplers.base import Reading, Sampler, Step, Stepped
from dlmkit.samplers.drawing import Shaped
from dlmkit.types import Canvas, Denoiser


@dataclass(frozen=True)
class Confidences:
    """How sure the network was of each token when it was decided.

    Attributes:
        prob: float64 [B, L], of the tokens that were drawn; +inf elsewhere, which is never masked again.
    """

    prob: Tensor

    def select(self, rows: Tensor) -> Confidences:
        """Return the confidences of some rows, int64 [R]."""
        return Confidences(self.prob[rows])


@dataclass(frozen=True)
class ReMDM(Shaped, Sampler[Confidences]):
    """A decided free token becomes a mask with probability sigma; a mask is replaced with probability

    (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), which leaves q(z_s | x) as it is for any sigma up to sigma_max =
    min(1, (1 - alpha_s) / alpha_t). Any network trained on absorbing noise serves. With an exact network it only adds
    steps: its samples tend to the data's distribution, later than ancestral ones do. Source: arXiv 2503.00307 (ReMDM),
    equations 7 and 8 and section 4.1.

    Attributes:
        rule: sigma is min(eta, sigma_max) ("cap"), eta sigma_max ("rescale"), or that times the softmax over a row's
            decided tokens of minus their probability when they were decided ("conf", about one token a step; which are
            masked then depends on the tokens that were drawn).
        eta: in [0, 1]; 0 is `ancestral`.
    """

    name = "remdm"

    rule: Literal["cap", "rescale", "conf"] = "cap"
    eta: Annotated[float, Range("[0, 1]", "it is a share of the decided tokens: try 0.02")] = 0.02

    parameterization: ClassVar[Parameterization] = X0LeaveOneOut()
    needs_masks = True

    @property
    def reads_samples(self) -> bool:  # type: ignore[override]
        """Whether what is masked again depends on the probability of drawn tokens."""
        return self.rule == "conf"

    @property
    def keeps_distribution(self) -> bool:  # type: ignore[override]
        """Whether the network's own distribution is drawn from."""
        return self.neutral

    def init(self, canvas: Canvas) -> Confidences:
        """Return that nothing was decided."""
        return Confidences(torch.full(canvas.tokens.shape, torch.inf, dtype=torch.float64, device=canvas.tokens.device))

    def undecided(self, process: ForwardProcess, x_t: Tensor, fixed: Tensor, state: Confidences) -> Tensor:
        """Return bool [B, L]: all free positions, as any may be masked again."""
        return ~fixed

    def step(
        self, denoiser: Denoiser, process: ForwardProcess, x_t: Tensor, step: Step, state: Confidences
    ) -> Stepped[Confidences]:
        """Mask some decided tokens, and replace some masks."""
        alpha_s, alpha_t = process.alpha(step.s)[:, None], process.alpha(step.t)[:, None]
        masked = process.may_change(x_t) & ~step.fixed
        most = ((1.0 - alpha_s) / alpha_t.clamp_min(1e-300)).clamp_max(1.0)
        sigma = self._sigma(most, masked, step, state)
        return remask_and_unmask(self, denoiser, process, x_t, step, state, sigma, leave_rate(alpha_s, alpha_t, sigma))

    def _sigma(self, most: Tensor, masked: Tensor, step: Step, state: Confidences) -> Tensor:
        """Return sigma, float64 [B, L]; under "conf" 0 at masks."""
        if self.rule == "cap":
            return most.clamp_max(self.eta).expand(masked.shape)
        if self.rule == "rescale":
            return (self.eta * most).expand(masked.shape)
        # Where nothing is decided a softmax over minus infinities is NaN.
        return self.eta * most * (-state.prob).softmax(-1).nan_to_num(0.0).masked_fill(masked | step.fixed, 0.0)


def leave_rate(alpha_s: Tensor, alpha_t: Tensor, sigma: Tensor) -> Tensor:
    """Return the probability with which a mask is replaced."""
    return ((alpha_s - (1.0 - sigma) * alpha_t) / (1.0 - alpha_t).clamp_min(1e-300)).clamp(0.0, 1.0)


def remask_and_unmask(
    shape: Shaped,
    denoiser: Denoiser,
    process: ForwardProcess,
    x_t: Tensor,
    step: Step,
    state: Confidences,
    sigma: Tensor,
    rate: Tensor,
    t: Tensor | None = None,
) -> Stepped[Confidences]:
    """Return the step that masks decided free tokens with probability sigma and replaces masks with probability rate.

    The network reads x_t, as it was before the step. Both are drawn first, so that the head runs at few positions.

    Args:
        shape: of the distribution that tokens are drawn from.
        denoiser: the network.
        process: noise that only masks.
        x_t: int64 [B, L].
        step: with the noise.
        state: confidences, kept up to date.
        sigma: float64 [B, L].
        rate: float64 [B, L].
        t: what the network reads as the time, if not the step's.
    """
    assert process.mask_id is not None
    uniform = step.noise.uniform("moves", x_t.shape[1])
    masked = process.may_change(x_t)
    again = ~masked & ~step.fixed & (uniform < sigma)
    done = unmask(shape, denoiser, process, x_t, step, masked & ~step.fixed & (uniform < rate), t)
    assert done.reading is not None
    prob = state.prob.masked_fill(again, torch.inf)
    prob = prob.masked_scatter(done.reading.where, prob_of(done.tokens, done.reading))
    return Stepped(done.tokens.masked_fill(again, process.mask_id), Confidences(prob), done.reading)


def prob_of(tokens: Tensor, reading: Reading) -> Tensor:
    """Return the probability of tokens [B, L] at the positions that were read, float64 [N]."""
    if not len(reading.logits):
        return torch.empty(0, dtype=torch.float64, device=tokens.device)
    log_probs = reading.logits.double().log_softmax(-1)
    return log_probs.gather(-1, tokens[reading.where][:, None])[:, 0].exp()
