"""What a planted error is: a part, what it is paired with, and the laws that must find it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dlmkit.laws.findings import Law
from dlmkit.laws.pairing import TOY, WIDE
from dlmkit.processes.absorbing import Absorbing
from dlmkit.processes.uniform import Uniform
from dlmkit.schedules.linear import Linear

VOCAB = (TOY.vocab_size, TOY.mask_id)
"""The last two arguments of a process."""

ABSORBING = Absorbing(Linear(), *VOCAB)
UNIFORM = Uniform(Linear(), *VOCAB)
WIDE_ABSORBING = Absorbing(Linear(), WIDE.vocab_size, WIDE.mask_id)


@dataclass(frozen=True)
class Case:
    """A part to which laws are applied.

    Attributes:
        make: class of the part, or a function that makes it.
        arguments: of `make`.
        paired_with: what the laws take beside the part, such as a process.
        title: of the test; by default the name of `make`.
    """

    make: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    paired_with: tuple[Any, ...] = ()
    title: str = ""

    @property
    def name(self) -> str:
        return self.title or self.make.__name__

    def parts(self) -> tuple[Any, ...]:
        """Return the arguments of the laws."""
        return (self.make(*self.arguments), *self.paired_with)


@dataclass(frozen=True, kw_only=True)
class _CaughtBy:
    caught_by: tuple[Law, ...]


@dataclass(frozen=True)
class Mutant(Case, _CaughtBy):
    """A real part with one error; `caught_by` are the laws that must find it, the others may pass or fail."""


@dataclass(frozen=True, kw_only=True)
class _Passes:
    passes: tuple[Law, ...]


@dataclass(frozen=True)
class RightPart(Case, _Passes):
    """A part that looks wrong or is demanding, and is right: the laws in `passes` must not refuse it."""
