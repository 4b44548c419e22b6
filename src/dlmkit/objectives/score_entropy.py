"""Score entropy (SEDD): the network predicts ratios of probabilities instead of probabilities."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlmkit.objectives.base import Objective
from dlmkit.parameterizations.score import Score
from dlmkit.processes.base import InterpolatingProcess
from dlmkit.tensors import at_positions, scatter
from dlmkit.types import ClosedForm, Noised, Prediction, TokenLoss


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
        weight = at_positions(sigma_rate_times_r * noised.weight, where)
        form = MaskScores(process.num_tokens)
        return scatter(prediction.weighted(form, where, weight, noised.x_0[where]).loss, where)

    def _uniform(self, prediction: Prediction, noised: Noised, process: InterpolatingProcess) -> Tensor:
        """Return [B, L]: the true ratio is one number at all y but x_0."""
        where = noised.scored
        alpha = process.schedule.alpha(noised.t)
        rate = -process.schedule.derivative(noised.t) / (alpha * process.num_tokens)
        weight = at_positions(rate * noised.weight, where)
        log_q_x_0 = torch.log1p(alpha * process.num_tokens / (1.0 - alpha))
        arguments = (noised.x_0[where], noised.x_t[where], at_positions(log_q_x_0, where))
        form = TokenScores(process.mask_id)
        return scatter(prediction.weighted(form, where, weight, *arguments).loss, where)


class MaskScores(ClosedForm):
    """sum over y of e^d(y) - 1 - d(x_0) at a mask, with d = log(s / r) = logits - log(V - 1), in which alpha cancels.

    The gradient is e^d(y) - 1[y = x_0]. The scaling of the logits is that of
    :class:`dlmkit.parameterizations.score.Score`.

    Args:
        num_tokens: V - 1.
    """

    def __init__(self, num_tokens: int) -> None:
        self.log_num_tokens = math.log(num_tokens)

    def __call__(self, logits: Tensor, *arguments: Tensor) -> Tensor:
        """Return the values [n] for logits [n, V] and x_0, int64 [n]."""
        excess = logits - self.log_num_tokens
        return excess.exp().sum(-1) - 1.0 - excess.gather(-1, arguments[0][:, None])[:, 0]

    def to_gradient_(self, logits: Tensor, *arguments: Tensor) -> Tensor:
        """Return the values [n], the logits replaced by their gradients; arguments as in a call."""
        x_0 = arguments[0][:, None]
        excess = logits.sub_(self.log_num_tokens)
        at_x_0 = excess.gather(-1, x_0)
        ratio = excess.exp_()
        value = ratio.sum(-1) - 1.0 - at_x_0[:, 0]
        ratio.scatter_add_(-1, x_0, torch.full_like(at_x_0, -1.0))
        return value


class TokenScores(ClosedForm):
    """sum over y != z of r(y) (e^d(y) - 1 - d(y)) with d = log(s / r), under uniform noise.

    The true ratio r to q(z) is one number at all y but x_0: with R = q(x_0) / q(any other) it is 1 where z is not x_0,
    and R at x_0; where z is x_0 it is 1 / R. The gradient is r(y) (e^d(y) - 1) = s(y) - r(y), zero at z and the mask.

    Args:
        mask_id: whose score is not used, or ``None``.
    """

    def __init__(self, mask_id: int | None) -> None:
        self.mask_id = mask_id

    def __call__(self, logits: Tensor, *arguments: Tensor) -> Tensor:
        """Return the values [n].

        Args:
            logits: log s, [n, V].
            arguments: x_0 and z, int64 [n]; log R [n].
        """
        x_0, z, log_q = arguments
        log_q = log_q.to(logits.dtype)
        log_r = torch.where(z == x_0, -log_q, 0.0)
        excess = (logits - log_r[:, None]).scatter(-1, z[:, None], 0.0)
        if self.mask_id is not None:
            excess = excess.index_fill(-1, z.new_tensor([self.mask_id]), 0.0)
        at_x_0 = excess.gather(-1, x_0[:, None])[:, 0]
        own = log_q.exp() * _bregman(at_x_0 - log_q) - _bregman(at_x_0)
        return log_r.exp() * _bregman(excess).sum(-1) + torch.where(z == x_0, 0.0, own)

    def to_gradient_(self, logits: Tensor, *arguments: Tensor) -> Tensor:
        """Return the values [n], the logits replaced by their gradients; arguments as in a call."""
        x_0, z, log_q = arguments
        log_q = log_q.to(logits.dtype)
        log_r = torch.where(z == x_0, -log_q, 0.0)
        excess = logits.sub_(log_r[:, None]).scatter_(-1, z[:, None], 0.0)
        if self.mask_id is not None:
            excess[:, self.mask_id] = 0.0
        at_x_0, grown = excess.gather(-1, x_0[:, None])[:, 0], torch.expm1(excess)
        own = log_q.exp() * _bregman(at_x_0 - log_q) - _bregman(at_x_0)
        value = -log_r.exp() * excess.sub_(grown).sum(-1) + torch.where(z == x_0, 0.0, own)
        torch.mul(grown, log_r.exp()[:, None], out=logits)
        slope = log_q.exp() * torch.expm1(at_x_0 - log_q) - torch.expm1(at_x_0)
        logits.scatter_add_(-1, x_0[:, None], torch.where(z == x_0, 0.0, slope)[:, None])
        return value


def _bregman(log_ratio: Tensor) -> Tensor:
    """Return e^d - 1 - d, >= 0."""
    return torch.expm1(log_ratio) - log_ratio
