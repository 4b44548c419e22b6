"""The network predicts the clean token: in view of everything, or without its own noisy token."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmkit.parameterizations.base import Parameterization
from dlmkit.processes.base import ForwardProcess

_SMALLEST = 1e-300


class X0LeaveOneOut(Parameterization):
    """softmax(logits) = p(x_0^i | x_t^{-i}), which does not depend on the position's own noisy token.

    This is what plug-in reverse steps and closed-form bounds need (arXiv 2506.10892, equation 7, for uniform noise),
    and what a network trained on such a bound learns. Under noise that only masks, tokens that are not masked are clean
    and carried over.
    """

    name = "x0_loo"

    def log_x0(self, logits: Tensor, x_t: Tensor, t: Tensor, process: ForwardProcess) -> Tensor:
        """Return the log-softmax; where x_t is clean for sure, probability 1 (log 0.0) on x_t and -inf elsewhere."""
        return carry_over(logits.log_softmax(-1), x_t, process)

    def from_log_x0(self, log_x0: Tensor, x_t: Tensor, t: Tensor, process: ForwardProcess) -> Tensor:
        """Return `log_x0` itself."""
        return log_x0

    def agrees_with(self, other: Parameterization, process: ForwardProcess) -> bool:
        """Return whether both predict x_0; under noise that only masks the two kinds coincide."""
        return agree_on_x0(self, other, process)


class X0(Parameterization):
    """softmax(logits) = p(x_0^i | x_t), the posterior in view of the position's own noisy token too.

    Plain cross-entropy on all tokens learns it. The leave-one-out posterior follows by Bayes: it is proportional to
    p(x_0^i | x_t) / q_t(x_t^i | x_0^i).
    """

    name = "x0"

    def log_x0(self, logits: Tensor, x_t: Tensor, t: Tensor, process: ForwardProcess) -> Tensor:
        """Return the leave-one-out posterior: the output over the likelihood of the position's own noisy token."""
        posterior = logits.log_softmax(-1)
        if process.mask_only:
            return carry_over(posterior, x_t, process)
        return (posterior - _log_likelihood(x_t, t, process)).log_softmax(-1)

    def from_log_x0(self, log_x0: Tensor, x_t: Tensor, t: Tensor, process: ForwardProcess) -> Tensor:
        """Return the posterior: Bayes with the likelihood of the position's own noisy token."""
        return log_x0 if process.mask_only else (log_x0 + _log_likelihood(x_t, t, process)).log_softmax(-1)

    def agrees_with(self, other: Parameterization, process: ForwardProcess) -> bool:
        """Return whether both predict x_0; under noise that only masks the two kinds coincide."""
        return agree_on_x0(self, other, process)


def agree_on_x0(one: Parameterization, other: Parameterization, process: ForwardProcess) -> bool:
    """Return whether two predictions of x_0 are of one kind, or both kinds are the same under `process`."""
    return type(one) is type(other) or (process.mask_only and isinstance(other, X0 | X0LeaveOneOut))


def carry_over(log_probs: Tensor, x_t: Tensor, process: ForwardProcess) -> Tensor:
    """Return log-probabilities [N, V] that are certain of x_t (int64 [N]) where it is clean for sure."""
    if not process.mask_only:
        return log_probs
    carried = torch.full_like(log_probs, float("-inf")).scatter_(-1, x_t[:, None], 0.0)
    return torch.where(process.may_change(x_t)[:, None], log_probs, carried)


def _log_likelihood(x_t: Tensor, t: Tensor, process: ForwardProcess) -> Tensor:
    """Return log q_t(x_t | x_0 = y) for each y, [N, V]."""
    alpha, mass = process.coefficients(t)
    likelihood = mass.gather(-1, x_t[:, None]).expand(-1, process.vocab_size).clone()
    likelihood.scatter_add_(-1, x_t[:, None], alpha[:, None])
    return likelihood.clamp_min(_SMALLEST).log()
