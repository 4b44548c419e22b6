"""The seam of forward processes: what noise does to a token."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from dlmkit.schedules.base import Schedule


class ForwardProcess(ABC):
    """q_t(z | x) = alpha_t 1[z = x] + mass_t(z), with mass_t >= 0 and sum_z mass_t(z) = 1 - alpha_t.

    Tokens are noised independently. Absorbing, uniform and hybrid noise are three masses; everything below follows
    from `coefficients`, and a subclass overrides a method only where its noise allows something faster.

    The chain behind the marginals (arXiv 2503.04482, section 3): from s to t > s a token keeps its value with
    probability alpha_t / alpha_s, and otherwise jumps to z with mass_t(z) - alpha_t / alpha_s mass_s(z).

    Args:
        vocab_size: V, mask token included.
        mask_id: id of the mask token, or ``None``.
    """

    loo_is_x0 = False
    """Whether p(x_0 | x_t) at a noisy position equals the leave-one-out posterior p(x_0^i | x_t^{-i})."""

    independent = True
    """Whether `corrupt` noises tokens independently given t, as `coefficients` says. Otherwise only the mean over t of
    a bound that knows the process is right (objective=masked)."""

    noises = True
    """Whether there is noise at all (the autoregressive baseline has none)."""

    num_copies = 1
    """C, how many noisy copies of each block a training step reads; its loss is their mean."""

    def __init__(self, vocab_size: int, mask_id: int | None) -> None:
        self.vocab_size = vocab_size
        self.mask_id = mask_id

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha [B], mass [B, V]) at t (float64 [B]), differentiable in t."""

    @abstractmethod
    def log_x0(self, logits: Tensor, x_t: Tensor) -> Tensor:
        """Return log x_theta [N, V], normalised, from logits [N, V] at positions that hold x_t (int64 [N])."""

    def alpha(self, t: Tensor) -> Tensor:
        """Return alpha [B] alone."""
        return self.coefficients(t)[0]

    def corrupt(self, x_0: Tensor, t: Tensor, scored: Tensor, generator: torch.Generator) -> Tensor:
        """Draw x_t ~ q_t(. | x_0) where `scored`; elsewhere x_0 is returned untouched.

        Args:
            x_0: int64 [B, L].
            t: float64 [B].
            scored: bool [B, L].
            generator: on the device of x_0.
        """
        alpha, mass = self.coefficients(t)
        noise = torch.multinomial(_distribution(mass), x_0.shape[1], replacement=True, generator=generator)
        return torch.where(_noisy(alpha, x_0, generator) & scored, noise, x_0)

    def copies(self, t: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the times and weights [C, ...] of a block's C copies in training, given one draw of each [...].

        The mean of weight * f(t) is the same integral for each copy alone.
        """
        return t[None], weight[None]

    def corrupt_copies(self, x_0: Tensor, t: Tensor, scored: Tensor, generator: torch.Generator) -> Tensor:
        """Draw the C copies of each block together, int64 [C, B, L]; each alone is distributed as `corrupt` is.

        Args:
            x_0: int64 [B, L].
            t: float64 [C, B], as `copies` gave it.
            scored: bool [B, L].
            generator: on the device of x_0.
        """
        return torch.stack([self.corrupt(x_0, now, scored, generator) for now in t])

    def marginal(self, x0_probs: Tensor, t: Tensor) -> Tensor:
        """Return q_t(. | x0_probs) [N, V] for distributions over clean tokens [N, V] and t [N]."""
        alpha, mass = self.coefficients(t)
        return alpha[:, None] * x0_probs + mass

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha_{t|s} [N], mass_{t|s} [N, V]) of the step from s to t >= s, both [N]."""
        alpha_s, mass_s = self.coefficients(s)
        alpha_t, mass_t = self.coefficients(t)
        kept = alpha_t / alpha_s
        return kept, (mass_t - kept[:, None] * mass_s).clamp_min(0.0)

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
        """Return the jump rate r_t(z) [B, V] from any other token to z: mass'_t(z) - alpha'_t / alpha_t mass_t(z)."""
        values, slopes = torch.func.jvp(self.coefficients, (t,), (torch.ones_like(t),))[:2]
        (alpha, mass), (d_alpha, d_mass) = values, slopes
        return d_mass - (d_alpha / alpha)[:, None] * mass

    def prior(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Draw x_1, int64 `shape` = (B, L), from the noise distribution at t = 1."""
        t = torch.ones(shape[0], dtype=torch.float64, device=generator.device)
        _, mass = self.coefficients(t)
        return torch.multinomial(_distribution(mass), shape[1], replacement=True, generator=generator)

    @property
    def left_out(self) -> tuple[float, float]:
        """The shares (1 - alpha(0), alpha(1)) of the bound's range that lie outside of t in [0, 1]."""
        alpha = self.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64))
        return 1.0 - float(alpha[0]), float(alpha[1])

    def may_change(self, x_t: Tensor) -> Tensor:
        """Return bool, same shape as x_t: where a reverse step may change the token at all."""
        return torch.ones_like(x_t, dtype=torch.bool)


class ScheduledProcess(ForwardProcess, ABC):
    """A process whose alpha comes from a schedule.

    Args:
        schedule: alpha(t).
        vocab_size: V, mask token included.
        mask_id: id of the mask token, or ``None``.
    """

    def __init__(self, schedule: Schedule, vocab_size: int, mask_id: int | None) -> None:
        super().__init__(vocab_size, mask_id)
        self.schedule = schedule

    def alpha(self, t: Tensor) -> Tensor:
        """Return the schedule's alpha [B]."""
        return self.schedule.alpha(t)


def _distribution(mass: Tensor) -> Tensor:
    """Return mass [B, V] normalised; uniform in rows without any (t = 0), where nothing is drawn from it."""
    total = mass.sum(-1, keepdim=True)
    return torch.where(total > 0, mass / total.clamp_min(torch.finfo(mass.dtype).tiny), torch.ones_like(mass))


def _noisy(alpha: Tensor, like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw bool [B, L], True with probability 1 - alpha."""
    uniform = torch.rand(like.shape, dtype=torch.float64, device=like.device, generator=generator)
    return uniform >= alpha[:, None]
