"""Score entropy (SEDD): the network predicts ratios of probabilities instead of probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmkit.objectives.base import Objective
from dlmkit.parameterizations.score import SMALLEST_ALPHA, Score
from dlmkit.processes.base import InterpolatingProcess
from dlmkit.tensors import at_positions, scatter
from dlmkit.types import Noised, Prediction, TokenLoss


class ScoreEntropy(Objective[InterpolatingProcess]):
    """nll = rate * sum over y != x_t of s(y) - r(y) log s(y) + r(y) (log r(y) - 1), with r(y) = q_t(y) / q_t(x_t).

    s is the network's score, r the true ratio given x_0, rate the jump rate into x_t: sigma' for absorbing noise and
    sigma' / N for uniform noise, sigma = -log alpha. A term is r (e^d - 1 - d) with d = log(s / r), and written so
    that nothing of order 1 cancels where s is near r. Under absorbing noise only masked positions have a loss,

        nll = sigma' * (sum over y of s(y) - r log s(x_0) + r (log r - 1)),   r = 1 / expm1(sigma).

    Source: arXiv 2310.16834 (SEDD), section 3: denoising score entropy and its bound on the likelihood. Scores need not
    come from a distribution: with those of a prediction of x_0 this is `masked` or `uniform`, with others a wrong sum
    of s adds to the loss. Under uniform noise the rate grows like 1 / alpha towards t = 1, where a network's scores are
    not quite 1: take a schedule of finite total noise, alpha(1) > 0 (`log_linear`, `geometric`), or the bound diverges
    like log(1 / alpha).
    """

    parameterization = Score()
    requires = InterpolatingProcess
    noisy_positions_only = True

    def __call__(self, prediction: Prediction, noised: Noised, process: InterpolatingProcess) -> TokenLoss:
        """Return the bound as loss and as nll."""
        per_token = (self._masked if process.mask_only else self._uniform)(prediction, noised, process)
        return TokenLoss(loss=per_token, nll=per_token.detach())

    def _masked(self, prediction: Prediction, noised: Noised, process: InterpolatingProcess) -> Tensor:
        """Return [B, L]: sigma' r (sum of e^d - 1 - d(x_0)), as the true ratio is zero but at x_0."""
        where = (noised.x_t != noised.x_0) & noised.scored
        alpha = process.schedule.alpha(noised.t)
        sigma_rate_times_r = -process.schedule.derivative(noised.t) / (1.0 - alpha)  # alpha cancels, and with it 0 / 0

        def entropy(logits: Tensor, x_0: Tensor, z: Tensor, alpha: Tensor) -> Tensor:
            alpha = alpha.clamp_min(SMALLEST_ALPHA)
            log_r = (alpha.log() - torch.log1p(-alpha)).to(logits.dtype)
            excess = self.parameterization.log_score(logits, z, alpha, process) - log_r[:, None]
            return excess.exp().sum(-1) - 1.0 - excess.gather(-1, x_0[:, None])[:, 0]

        arguments = (noised.x_0[where], noised.x_t[where], at_positions(alpha, where))
        value = prediction.map_logits(entropy, where, *arguments)
        return scatter(value * at_positions(sigma_rate_times_r * noised.weight, where).to(value.dtype), where)

    def _uniform(self, prediction: Prediction, noised: Noised, process: InterpolatingProcess) -> Tensor:
        """Return [B, L]: the true ratio is one number at all y but x_0."""
        where = noised.scored
        alpha = process.schedule.alpha(noised.t)
        rate = -process.schedule.derivative(noised.t) / (alpha * process.num_tokens)

        def entropy(logits: Tensor, x_0: Tensor, z: Tensor, alpha: Tensor) -> Tensor:
            log_q_x0 = torch.log1p(alpha * process.num_tokens / (1.0 - alpha)).to(logits.dtype)  # over q(any other)
            log_r = torch.where(z == x_0, -log_q_x0, 0.0)
            log_s = self.parameterization.log_score(logits, z, alpha, process)
            unused = log_s == float("-inf")
            terms = _bregman((log_s - log_r[:, None]).masked_fill(unused, 0.0))
            total = log_r.exp() * terms.sum(-1)
            # At x_0, when it is another token than z, the true ratio is q(x_0) / q(other) instead of 1.
            at_x_0 = log_s.gather(-1, x_0[:, None])[:, 0].masked_fill(z == x_0, 0.0)
            own = log_q_x0.exp() * _bregman(at_x_0 - log_q_x0) - _bregman(at_x_0)
            return total + torch.where(z == x_0, 0.0, own)

        arguments = (noised.x_0[where], noised.x_t[where], at_positions(alpha, where))
        value = prediction.map_logits(entropy, where, *arguments)
        return scatter(value * at_positions(rate * noised.weight, where).to(value.dtype), where)


def _bregman(log_ratio: Tensor) -> Tensor:
    """Return e^d - 1 - d, >= 0."""
    return torch.expm1(log_ratio) - log_ratio
