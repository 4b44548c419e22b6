"""Hybrid noise (GIDD): a token stays, becomes the mask, or is replaced by a uniformly drawn one."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from dlmkit.processes.base import Coefficients, ForwardProcess, VocabSize
from dlmkit.ranges import Range, checked

_TINY = torch.finfo(torch.float64).tiny
_BELOW_ONE = 1.0 - torch.finfo(torch.float64).eps


class Shares(NamedTuple):
    """The marginal of a token, [B] each.

    Attributes:
        alpha: that it is clean.
        at_mask: the mass at the mask.
        elsewhere: the mass at each other token.
    """

    alpha: Tensor
    at_mask: Tensor
    elsewhere: Tensor


class Rates(NamedTuple):
    """Jump rates, [B] each: into the mask, and into each other token."""

    into_mask: Tensor
    into_token: Tensor


class Hybrid(ForwardProcess):
    """alpha_t = (1 - t) / (1 + c_t); mass_t = (t at the mask + c_t spread over the N other tokens) / (1 + c_t).

    With c_t = B t^(gamma/2) (1 - t)^(gamma/2) and B = 2^gamma p_uniform / (1 - p_uniform), so that the share of
    uniformly replaced tokens is largest at t = 1/2, where it is p_uniform; at t = 1 all tokens are masks. It brings its
    own alpha: `schedule` is not read. With p_uniform = 0 it is absorbing noise under the linear schedule.
    Source: arXiv 2503.04482 (GIDD), the mixing schedule of its hybrid noise.

    Args:
        vocab_size: V, mask token included; N = V - 1.
        mask_id: id of the mask token; required.
        p_uniform: largest share of uniform noise, in [0, 1).
        gamma: how the uniform noise is spread over time, in (0, 2]: above 2 tokens would have to jump backwards.

    Raises:
        ValueError: there is no mask token, or a value is outside of its range.
    """

    @checked
    def __init__(
        self,
        vocab_size: VocabSize,
        mask_id: int | None,
        p_uniform: Annotated[float, Range("[0, 0.99]", "it is a share of replaced tokens, try 0.1")],
        gamma: Annotated[float, Range("(0, 2]", "beyond 2 this is no Markov chain, try 1")],
    ) -> None:
        if mask_id is None:
            raise ValueError("process=hybrid needs a mask token, mask_id is null: choose a tokenizer with a mask")
        super().__init__(vocab_size, mask_id)
        self.mask_id: int = mask_id
        self.num_tokens = vocab_size - 1
        self.gamma = gamma
        self.scale = 2.0**gamma * p_uniform / (1.0 - p_uniform)  # B
        self.mask_only = p_uniform == 0.0

    def shares(self, t: Tensor) -> Shares:
        """Return the marginal at t [B]."""
        c = self.scale * (t * (1.0 - t)) ** (0.5 * self.gamma)
        return Shares((1.0 - t) / (1.0 + c), t / (1.0 + c), c / (1.0 + c) / self.num_tokens)

    def rates(self, t: Tensor) -> Rates:
        """Return the jump rates at t (float64 [B]).

        1 / ((1 + c) (1 - t)) and (c' + c / (1 - t)) / ((1 + c) N), written without the difference of large terms that
        automatic differentiation makes near t = 0 and 1. The limits there are infinite; what is returned is finite.
        """
        t = t.clamp(_TINY, _BELOW_ONE)
        c = self.scale * (t * (1.0 - t)) ** (0.5 * self.gamma)
        slope = c / (t * (1.0 - t)) * (0.5 * self.gamma + (1.0 - self.gamma) * t)
        return Rates(1.0 / ((1.0 + c) * (1.0 - t)), slope / (1.0 + c) / self.num_tokens)

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return (alpha [B], mass [B, V])."""
        alpha, at_mask, elsewhere = self.shares(t)
        return Coefficients(alpha, self._spread(at_mask, elsewhere))

    def alpha(self, t: Tensor) -> Tensor:
        """Return alpha [B]."""
        return self.shares(t).alpha

    def rate(self, t: Tensor) -> Tensor:
        """Return the jump rates [B, V]."""
        return self._spread(*self.rates(t))

    def corrupt(self, x_0: Tensor, t: Tensor, scored: Tensor, generator: torch.Generator) -> Tensor:
        """Keep, mask or replace each scored token: one uniform number chooses, one uniform token replaces."""
        alpha, at_mask, _ = self.shares(t)
        chance = torch.rand(x_0.shape, dtype=torch.float64, device=x_0.device, generator=generator)
        drawn = torch.randint(self.num_tokens, x_0.shape, device=x_0.device, generator=generator)
        drawn += drawn >= self.mask_id
        noise = drawn.masked_fill(chance < (alpha + at_mask)[:, None], self.mask_id)
        return torch.where((chance >= alpha[:, None]) & scored, noise, x_0)

    def prior(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Return all masks."""
        return torch.full(shape, self.mask_id, dtype=torch.int64, device=generator.device)

    def _spread(self, at_mask: Tensor, elsewhere: Tensor) -> Tensor:
        """Return [B, V] with one value [B] at the mask and another at every other token, differentiably."""
        is_mask = torch.arange(self.vocab_size, device=at_mask.device) == self.mask_id
        return torch.where(is_mask, at_mask[:, None], elsewhere[:, None])
