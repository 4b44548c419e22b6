"""Next-token cross-entropy: the baseline, exact rather than a bound."""

from __future__ import annotations

import torch

from dlmkit.objectives.base import Objective
from dlmkit.parameterizations.next_token import NextToken
from dlmkit.processes.base import ForwardProcess
from dlmkit.processes.none import NoNoise
from dlmkit.tensors import scatter
from dlmkit.types import Noised, Prediction, TokenLoss


class Autoregressive(Objective[ForwardProcess]):
    """nll = -log p(x_0^i | x_0^{<i}) at every scored position; its sum is -log p(x_0) exactly.

    Source: arXiv 2410.17891, equation 8. The backbone's shift aligns the output at i - 1 with token i.
    """

    parameterization = NextToken()
    requires = NoNoise
    exact = True

    def __call__(self, prediction: Prediction, noised: Noised, process: ForwardProcess) -> TokenLoss:
        """Return the cross-entropy as loss and as nll."""
        total, values = prediction.weighted_nll(noised.x_0, noised.scored, torch.ones_like(noised.x_0[noised.scored]))
        per_token = scatter(values, noised.scored)
        return TokenLoss(loss=per_token, nll=per_token.detach(), fused=total)
