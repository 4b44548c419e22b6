"""The interface of forward processes: what noise does to a token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from dlmkit.parts import Part
from dlmkit.ranges import Range, checked
from dlmkit.schedules.base import Schedule

VocabSize = Annotated[int, Range("[1, 2147483647]", "leave it to the tokenizer")]


class Coefficients(NamedTuple):
    """The marginal q_t(z | x) = alpha_t 1[z = x] + mass_t(z) at B times.

    Attributes:
        alpha: probability that a token is still clean, [B].
        mass: probability that noise puts on each token, [B, V].
    """

    alpha: Tensor
    mass: Tensor


class Transition(NamedTuple):
    """A step of the chain: q_{t|s}(z | y) = kept 1[z = y] + mass(z).

    Attributes:
        kept: probability that a token stays, alpha_t / alpha_s, [N].
        mass: [N, V].
    """

    kept: Tensor
    mass: Tensor


class EndShares(NamedTuple):
    """What a schedule leaves outside of the integral over t in [0, 1]; zero for one that runs from data to noise.

    Attributes:
        noisy_at_0: 1 - alpha(0), which calls for a reconstruction term.
        clean_at_1: alpha(1), which calls for a prior term.
    """

    noisy_at_0: float
    clean_at_1: float


class ForwardProcess(Part, ABC):
    """q_t(z | x) = alpha_t 1[z = x] + mass_t(z), with mass_t >= 0 and sum_z mass_t(z) = 1 - alpha_t.

    Noise is factorized over tokens. Absorbing, uniform and hybrid noise are three masses; everything below follows from
    `coefficients`, and a subclass overrides a method only where its noise allows something faster.

    The chain behind the marginals (arXiv 2503.04482, section 3): from s to t > s a token keeps its value with
    probability alpha_t / alpha_s, and otherwise jumps to z with mass_t(z) - alpha_t / alpha_s mass_s(z).

    Args:
        vocab_size: V, mask token included.
        mask_id: id of the mask token, or ``None``.
    """

    group = "process"

    mask_only: bool = False
    """Whether all noise goes to the mask token. Any other token is then clean, and at a masked position p(x_0 | x_t) is
    the leave-one-out posterior p(x_0^i | x_t^{-i})."""

    has_noise: bool = True
    """Whether there is noise at all (the autoregressive baseline has none)."""

    @checked
    def __init__(self, vocab_size: VocabSize, mask_id: int | None) -> None:
        if mask_id is not None and not 0 <= mask_id < vocab_size:
            raise ValueError(
                f"process.mask_id {mask_id} is outside the vocabulary of {vocab_size} tokens: leave process.mask_id and"
                " process.vocab_size to the tokenizer"
            )
        self.vocab_size = vocab_size
        self.mask_id = mask_id

    @abstractmethod
    def coefficients(self, t: Tensor) -> Coefficients:
        """Return (alpha [B], mass [B, V]) at t (float64 [B]), differentiable in t."""

    def alpha(self, t: Tensor) -> Tensor:
        """Return alpha [B] alone."""
        return self.coefficients(t).alpha

    def corrupt(self, x_0: Tensor, t: Tensor, scored: Tensor, generator: torch.Generator) -> Tensor:
        """Draw x_t ~ q_t(. | x_0) where `scored`; elsewhere x_0 is returned unchanged.

        Args:
            x_0: int64 [B, L].
            t: float64 [B].
            scored: bool [B, L].
            generator: on the device of x_0.
        """
        alpha, mass = self.coefficients(t)
        noise = torch.multinomial(_distribution(mass), x_0.shape[1], replacement=True, generator=generator)
        return torch.where(draw_noisy(alpha, x_0, generator) & scored, noise, x_0)

    def marginal(self, x0_probs: Tensor, t: Tensor) -> Tensor:
        """Return q_t(. | x0_probs) [N, V] for distributions over clean tokens [N, V] and t [N]."""
        alpha, mass = self.coefficients(t)
        return alpha[:, None] * x0_probs + mass

    def transition(self, s: Tensor, t: Tensor) -> Transition:
        """Return the step from s to t >= s, both float64 [N], with alpha(s) > 0 (otherwise NaN)."""
        alpha_s, mass_s = self.coefficients(s)
        alpha_t, mass_t = self.coefficients(t)
        kept = alpha_t / alpha_s
        return Transition(kept, (mass_t - kept[:, None] * mass_s).clamp_min(0.0))

    def posterior(self, x_t: Tensor, x0_probs: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """Return q(x_s | x_t, x_0 ~ x0_probs) [N, V]: Bayes on the chain.

        With a one-hot `x0_probs` this is the exact posterior; with the leave-one-out posterior of the data it is the
        exact reverse step (arXiv 2506.10892, equation 7 for uniform noise).

        Args:
            x_t: int64 [N].
            x0_probs: [N, V], rows sum to 1.
            s: float64 [N], s < t.
            t: float64 [N].
        """
        kept, mass = self.transition(s, t)
        at_s = self.marginal(x0_probs, s)
        likelihood = mass.gather(-1, x_t[:, None]).expand_as(at_s).clone()  # q_{t|s}(x_t | y), the same for all y...
        likelihood.scatter_add_(-1, x_t[:, None], kept[:, None].to(likelihood.dtype))  # ...but y = x_t
        joint = likelihood * at_s
        return joint / joint.sum(-1, keepdim=True)

    def rate(self, t: Tensor) -> Tensor:
        """Return the jump rate r_t(z) [B, V] from any other token to z: mass'_t(z) - alpha'_t / alpha_t mass_t(z).

        It is per unit of t (float64 [B]), and finite only where alpha(t) > 0.
        """
        (alpha, mass), (d_alpha, d_mass) = torch.func.jvp(self.coefficients, (t,), (torch.ones_like(t),))[:2]
        return d_mass - (d_alpha / alpha)[:, None] * mass

    def prior(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Draw x_1, int64 `shape` = (B, L), from the noise distribution at t = 1."""
        t = torch.ones(shape[0], dtype=torch.float64, device=generator.device)
        noise = _distribution(self.coefficients(t).mass)
        return torch.multinomial(noise, shape[1], replacement=True, generator=generator)

    @property
    def end_shares(self) -> EndShares:
        """What the integral over t in [0, 1] leaves to the reconstruction and the prior term."""
        alpha = self.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64))
        return EndShares(1.0 - float(alpha[0]), float(alpha[1]))

    def may_change(self, x_t: Tensor) -> Tensor:
        """Return bool, same shape as x_t: where a reverse step may change the token at all."""
        if not self.mask_only:
            return torch.ones_like(x_t, dtype=torch.bool)
        assert self.mask_id is not None
        return x_t == self.mask_id


class InterpolatingProcess(ForwardProcess, ABC):
    """mass_t = (1 - alpha_t) pi: alpha comes from a schedule, and noise is drawn from one distribution pi at all times.

    Source: arXiv 2406.07524 (MDLM), section 3.1 (interpolating discrete diffusion).

    Args:
        schedule: alpha(t).
        vocab_size: V, mask token included.
        mask_id: id of the mask token, or ``None``.
    """

    num_noise_tokens: int
    """How many tokens noise is drawn from, each with pi = 1 / num_noise_tokens; pi is zero elsewhere."""

    @checked
    def __init__(self, schedule: Schedule, vocab_size: VocabSize, mask_id: int | None) -> None:
        super().__init__(vocab_size, mask_id)
        self.schedule = schedule

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Number of data tokens: V, less one for a mask token that data never holds."""

    @abstractmethod
    def noise_distribution(self, like: Tensor) -> Tensor:
        """Return pi [V], of the dtype and on the device of `like`."""

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return (alpha [B], mass [B, V])."""
        alpha = self.schedule.alpha(t)
        return Coefficients(alpha, (1.0 - alpha)[:, None] * self.noise_distribution(alpha))

    def alpha(self, t: Tensor) -> Tensor:
        """Return the schedule's alpha [B]."""
        return self.schedule.alpha(t)

    def inner_parts(self) -> Mapping[str, Part]:
        """Return the schedule."""
        return {"schedule": self.schedule}


def _distribution(mass: Tensor) -> Tensor:
    """Return mass [B, V] normalised; uniform in rows without any (t = 0), where nothing is drawn from it."""
    total = mass.sum(-1, keepdim=True)
    return torch.where(total > 0, mass / total.clamp_min(torch.finfo(mass.dtype).tiny), torch.ones_like(mass))


def draw_noisy(alpha: Tensor, like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw bool [B, L], the shape of `like`, True with probability 1 - alpha [B]."""
    uniform = torch.rand(like.shape, dtype=torch.float64, device=like.device, generator=generator)
    return uniform >= alpha[:, None]
