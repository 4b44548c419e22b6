"""Findings of laws: a measured number, its tolerance, and what a violation means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor

FALSE_ALARM = 1e-6
"""Chance that a statistical law fails although the part is right, were its seed fresh; the seeds are fixed."""

STANDARD_ERRORS = 5.0
"""A law about a mean may miss by this many standard errors: once in 2 million, were the seeds not fixed."""

Meaning = str | Callable[[], str]
"""One line on what a failure means; a function where finding that out takes time."""


@dataclass(frozen=True)
class Finding:
    """One number that a law measured on a part.

    Attributes:
        law: what must hold, such as "alpha never grows".
        part: which part was looked at, such as "schedule=linear"; "" until the caller names it.
        measured: the number, in the unit that `law` implies (nats, probability, p-value, count of mistakes).
        tolerance: its limit.
        passed: whether the limit is kept; NaN does not keep it. True where the law does not apply.
        meaning: what the failure means, one line; "" when it passed. Where the law does not apply, why.
        at_least: whether the limit is a lower one (p-values).
        applies: whether the law applies to the part at all; otherwise nothing was measured.
    """

    law: str
    part: str
    measured: float
    tolerance: float
    passed: bool
    meaning: str
    at_least: bool = False
    applies: bool = True

    @property
    def severity(self) -> float:
        """Measured over tolerance (its inverse for a lower limit): above 1 it fails; infinite for NaN.

        It picks the worst of several findings that apply.
        """
        if self.measured != self.measured:
            return float("inf")
        high, low = (self.tolerance, self.measured) if self.at_least else (self.measured, self.tolerance)
        return high / low if low > 0 else (0.0 if high <= 0 else float("inf"))


def at_most(law: str, measured: float | Tensor, tolerance: float, meaning: Meaning) -> Finding:
    """Return a finding that passes when `measured` <= `tolerance`."""
    measured = float(measured)
    passed = measured <= tolerance
    return Finding(law, "", measured, tolerance, passed, _explained(passed, meaning))


def at_least(law: str, measured: float | Tensor, tolerance: float, meaning: Meaning) -> Finding:
    """Return a finding that passes when `measured` >= `tolerance`."""
    measured = float(measured)
    passed = measured >= tolerance
    return Finding(law, "", measured, tolerance, passed, _explained(passed, meaning), at_least=True)


def holds(law: str, truth: bool | Tensor, meaning: Meaning) -> Finding:
    """Return a finding that counts one mistake, of which none is allowed, unless `truth`."""
    return at_most(law, 0.0 if bool(truth) else 1.0, 0.0, meaning)


def _explained(passed: bool, meaning: Meaning) -> str:
    if passed:
        return ""
    return meaning if isinstance(meaning, str) else meaning()


def worst_at(error: Tensor, t: Tensor) -> tuple[float, float]:
    """Return (the largest entry of error [T, ...], the t [T] where it is); NaN counts as infinite."""
    error = error.detach().double().nan_to_num(nan=float("inf"), posinf=float("inf"))
    by_time = error.reshape(len(t), -1).amax(-1)
    place = int(by_time.argmax())
    return float(by_time[place]), float(t[place])


def relative(got: Tensor, want: Tensor, rtol: float, atol: float = 0.0) -> Tensor:
    """Return |got - want| / (|want| + atol / rtol): at most rtol where torch.testing.assert_close would agree."""
    error = (got - want).abs()
    return torch.where(error == 0, 0.0, error / (want.abs() + atol / rtol))


class Law:
    """A function from a part (and what it is paired with) to findings, with the condition under which it applies.

    Made by the decorator :func:`law`.

    Args:
        function: yields findings.
        unless: returns why the law does not apply to given parts, or ``None`` where it does.
    """

    def __init__(
        self, function: Callable[..., Iterable[Finding]], unless: Callable[..., str | None] | None = None
    ) -> None:
        update_wrapper(self, function)
        self.name: str = function.__name__
        self.function = function
        self.unless = unless

    def __call__(self, *arguments: Any, **keywords: Any) -> Iterator[Finding]:
        """Yield the findings on the parts, whether the law applies or not."""
        yield from self.function(*arguments, **keywords)

    def __repr__(self) -> str:
        return self.name

    @property
    def title(self) -> str:
        """The law's name in words: "given tokens stay" for law_given_tokens_stay."""
        return self.name.removeprefix("law_").replace("_", " ")

    def why_not(self, *arguments: Any) -> str | None:
        """Return why the law does not apply to the parts, or ``None`` where it does."""
        return None if self.unless is None else self.unless(*arguments)


def law(unless: Callable[..., str | None] | None = None) -> Callable[[Callable[..., Iterable[Finding]]], Law]:
    """Make a law of a function that yields findings.

    Args:
        unless: from the law's arguments to why it does not apply, or ``None`` where it does.
    """
    return lambda function: Law(function, unless)


def findings_of(law: Law, part: str, *arguments: Any) -> list[Finding]:
    """Run one law and name the part.

    An error that the part raises is a finding as well, and so is a law that does not apply.
    """
    found: list[Finding] = []
    try:
        reason = law.why_not(*arguments)
        if reason is not None:
            return [Finding(law.title, part, float("nan"), 0.0, True, reason, applies=False)]
        for finding in law(*arguments):
            found.append(replace(finding, part=part))
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        meaning = f"the part raised {type(error).__name__}: {' '.join(str(error).split())}"
        found.append(Finding(law.title, part, float("nan"), 0.0, False, meaning))
    return found
