"""The interface of objectives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Generic, TypeVar

from dlmkit.parameterizations.base import Parameterization
from dlmkit.parts import Part
from dlmkit.processes.base import ForwardProcess
from dlmkit.ranges import Range
from dlmkit.types import Noised, Prediction, TokenLoss

MaxWeight = Annotated[float, Range("(0, 1e6]", "no token would have a loss below, try 10")] | None

P = TypeVar("P", bound=ForwardProcess)


class Objective(Part, ABC, Generic[P]):
    """What is minimised, and the bound on -log p(x_0) that is reported: (prediction, noised batch, process) -> losses.

    The type parameter is the class of processes that the formula holds for. What an objective needs of the rest of a
    run it declares in the attributes below; :mod:`dlmkit.compatibility` reads them.

    Laws (dlmkit.laws.objectives), for nll at weight 1: with the exact predictor its integral over t, plus the prior
    term, is -log p(x) for each x; any other predictor has a larger mean; closed forms equal `objective=elbo`.
    An objective other than an exact one multiplies loss and nll by `Noised.weight`.
    """

    group = "objective"

    parameterization: Parameterization
    """What the network's output means."""

    requires: type[ForwardProcess] = ForwardProcess  # type: ignore[type-abstract]
    """The processes that the formula holds for; always one with noise, unless `exact`."""

    exact: bool = False
    """Whether nll is the exact -log p(x_0) of clean tokens rather than an upper bound on it."""

    num_steps: int | None = None
    """T of a bound in discrete time, on the times 1/T, 2/T, ..., 1; ``None`` for an integral over t in [0, 1]."""

    block_size: int | None = None
    """Tokens per block where blocks are noised and predicted one after the other, or ``None``."""

    noisy_positions_only: bool = False
    """Whether the head runs only at positions that the process may have changed."""

    divides_by_noise_rate: bool = False
    """Whether the formula divides by `Noised.noise_rate` and so holds for tokens that are not noised independently."""

    @abstractmethod
    def __call__(self, prediction: Prediction, noised: Noised, process: P) -> TokenLoss:
        """Return per-token losses [B, L], nats.

        Args:
            prediction: the network's prediction for `noised.x_t`, in this objective's parameterization.
            noised: clean and noisy tokens, their times with importance weights, and the loss mask.
            process: the noise that made `noised.x_t`.
        """


def check_weighting(weighting: str, choices: tuple[str, ...], max_weight: float | None) -> None:
    """Refuse a weighting of the training loss that is unknown, or whose clip `max_weight` does not go with it.

    Raises:
        ValueError: `weighting` is not one of `choices`; "clipped" without a finite `max_weight` > 0; another weighting
            with a `max_weight`.
    """
    if weighting not in choices:
        raise ValueError(f"weighting {weighting!r} is unknown: choose one of {', '.join(choices)}")
    if (weighting == "clipped") != (max_weight is not None):
        raise ValueError(
            f"max_weight {max_weight} with weighting {weighting!r}: 'clipped' needs a max_weight, such as 10, and"
            " the others take none (null)"
        )
