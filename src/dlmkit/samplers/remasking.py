"""Steps that may mask a decided token again."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlmkit.parameterizations.base import Parameterization
from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.base import ForwardProcess
from dlmkit.samplers.ancestral import unmask
from dlmkit.samplers.base import Reading, Step, Stepped
from dlmkit.samplers.drawing import ShapedSampler
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
class Rates:
    """The probabilities of a step, float64 [B, L], which do not depend on what the network predicts in it.

    Attributes:
        remask: with which a decided free token becomes a mask, sigma.
        unmask: with which a mask is replaced.
    """

    remask: Tensor
    unmask: Tensor


class Remasking(ShapedSampler[Confidences]):
    """A decided free token becomes a mask with probability sigma, and a mask is replaced with probability

    (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), which leaves q(z_s | x) as it is for any sigma up to sigma_max =
    min(1, (1 - alpha_s) / alpha_t). Any network trained on absorbing noise serves. Source: arXiv 2503.00307 (ReMDM),
    equations 7 and 8.
    """

    parameterization: ClassVar[Parameterization] = X0LeaveOneOut()
    needs_masks = True

    @abstractmethod
    def alpha(self, process: ForwardProcess, t: Tensor) -> Tensor:
        """Return the expected share of decided tokens at t, float64 like t."""

    @abstractmethod
    def sigma(self, process: ForwardProcess, step: Step, masked: Tensor, state: Confidences) -> Tensor:
        """Return the probability with which each decided token is masked again, float64 [B, L]; any at masks.

        Args:
            process: noise that only masks.
            step: with the times and the given tokens.
            masked: bool [B, L].
            state: confidences of the decided tokens.
        """

    def network_time(self, process: ForwardProcess, step: Step) -> Tensor:
        """Return the time that the network reads, float64 [B]."""
        return step.t

    def init(self, canvas: Canvas) -> Confidences:
        """Return that nothing was decided."""
        return Confidences(torch.full(canvas.tokens.shape, torch.inf, dtype=torch.float64, device=canvas.tokens.device))

    def undecided(self, process: ForwardProcess, x_t: Tensor, fixed: Tensor, state: Confidences) -> Tensor:
        """Return bool [B, L]: all free positions, as any may be masked again."""
        return ~fixed

    def rates(self, process: ForwardProcess, step: Step, masked: Tensor, state: Confidences) -> Rates:
        """Return the probabilities of a step, see `sigma` for the arguments."""
        alpha_s, alpha_t = self.alpha(process, step.s)[:, None], self.alpha(process, step.t)[:, None]
        sigma = self.sigma(process, step, masked, state)
        unmask = (alpha_s - (1.0 - sigma) * alpha_t) / (1.0 - alpha_t).clamp_min(1e-300)
        return Rates(sigma, unmask.clamp(0.0, 1.0))

    def step(
        self, denoiser: Denoiser, process: ForwardProcess, x_t: Tensor, step: Step, state: Confidences
    ) -> Stepped[Confidences]:
        """Mask some decided tokens and replace some masks.

        The network reads x_t, as it was before the step. Both are drawn first, so that the head runs at few positions.
        """
        assert process.mask_id is not None
        masked = process.may_change(x_t)
        rates, uniform = self.rates(process, step, masked, state), step.noise.uniform("moves", x_t.shape[1])
        again = ~masked & ~step.fixed & (uniform < rates.remask)
        leaving = masked & ~step.fixed & (uniform < rates.unmask)
        done = unmask(self, denoiser, process, x_t, step, leaving, self.network_time(process, step))
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
