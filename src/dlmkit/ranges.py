"""Types and ranges of settings, declared in the annotations of constructors and checked when these are called.

    class Polynomial(Schedule):
        @checked
        def __init__(self, power: Annotated[float, Range("[0.1, 10]", "alpha must fall with t, try 2")]) -> None: ...

The configuration reads the same declarations (`dlmkit.config.values`), so that a run refuses a value under its full key
before anything is built.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

Init = TypeVar("Init", bound=Callable[..., None])

MOST_TOKENS = 2**20
"""Longest sequence, block or text, in tokens."""

LARGEST_SEED = 2**32 - 1
"""Seeds are numpy's and torch's alike, which share the unsigned 32-bit numbers."""


@dataclass(frozen=True)
class Range:
    """An interval of real numbers; a bracket includes its end, a parenthesis leaves it out.

    Attributes:
        interval: such as "(0, 1]".
        remedy: what to do with a value outside, such as "try 0.1".
    """

    interval: str
    remedy: str

    @property
    def low(self) -> float:
        """Lower end."""
        return float(self.interval[1:-1].split(",")[0])

    @property
    def high(self) -> float:
        """Upper end."""
        return float(self.interval[1:-1].split(",")[1])

    def __contains__(self, value: float) -> bool:
        if not abs(value) < math.inf:  # also for NaN, and for whole numbers beyond any float
            return False
        above = value >= self.low if self.interval[0] == "[" else value > self.low
        return above and (value <= self.high if self.interval[-1] == "]" else value < self.high)


COUNT = Range(f"[1, {10**9}]", "give a whole number of at least 1")
SEED = Range(f"[0, {LARGEST_SEED}]", "give a whole number, such as 0")
DROPOUT = Range("[0, 1)", "it is a share that is dropped, try 0.1")

Count = Annotated[int, COUNT]
Seed = Annotated[int, SEED]
Dropout = Annotated[float, DROPOUT]
Workers = Annotated[
    int,
    Range(f"[0, {8 * (os.cpu_count() or 1)}]", "0 is usually fast enough, and more than 8 for each core only wait"),
]
LoraRank = Annotated[int, Range("[0, 65536]", "it is the rank of the adapters, such as 8; 0 for none")]
LoraAlpha = Annotated[int, Range("[1, 1000000]", "the update is scaled by alpha / rank, try 16")]
Tokens = Annotated[int, Range(f"[1, {MOST_TOKENS}]", "it is a number of tokens, such as 128")]

_KINDS: dict[Any, tuple[type, str]] = {
    bool: (bool, "true or false"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "text"),
}


def misfit(value: Any, hint: Any) -> str | None:
    """Return what is wrong with a value, such as "is outside (0, 1]: try 0.1", or ``None``.

    Args:
        value: of a setting.
        hint: its annotation: bool, int, float, str, Literal, lists and tuples of these, unions with ``None``, each
            with a `Range` where it is Annotated; a class of the kit's. Any other annotation accepts every value.
    """
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _union_misfit(value, inside)
    if origin in (list, tuple, Iterable):
        return _items_misfit(value, hint)
    if origin is dict:
        return None if isinstance(value, Mapping) else "is not a section: set one of the keys below it"
    if origin is Literal:
        fits = any(type(value) is type(one) and value == one for one in inside)
        return None if fits else f"is unknown: choose one of {', '.join(map(str, inside))}"
    if hint is None or hint is type(None):
        return None if value is None else "is not null: leave it out"
    kind = inside[0] if origin is Annotated else hint
    if kind not in _KINDS:
        part = part_of(hint)
        return None if part is None or isinstance(value, part) else f"is no {part.__name__}: give one"
    allowed = range_of(hint)
    if not _is_kind(value, kind):
        remedy = allowed.remedy if allowed else f"give {_KINDS[kind][1]}{', in quotes' if kind is str else ''}"
        return f"is not {_phrase(hint)}: {remedy}"
    return None if allowed is None or value in allowed else f"is outside {allowed.interval}: {allowed.remedy}"


def part_of(hint: Any) -> type | None:
    """Return the class of the kit's that an annotation is, such as Sampler for Sampler[Any], or ``None``."""
    kind = get_origin(hint) or hint
    return kind if inspect.isclass(kind) and kind.__module__.startswith("dlmkit.") else None


def range_of(hint: Any) -> Range | None:
    """Return the range that an annotation declares, or ``None``."""
    notes = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((note for note in notes if isinstance(note, Range)), None)


def _is_kind(value: Any, kind: type) -> bool:
    fits = isinstance(value, _KINDS[kind][0]) or (kind is str and isinstance(value, os.PathLike))
    return fits and isinstance(value, bool) == (kind is bool)


def _union_misfit(value: Any, hints: Sequence[Any]) -> str | None:
    problems = [misfit(value, hint) for hint in hints]
    if None in problems:
        return None
    ranked = [str(problem) for problem in problems if str(problem).startswith(("is outside", "has "))]
    if ranked:  # of the right type, but not in its range
        return ranked[0]
    return f"is not {' or '.join(map(_phrase, hints))}: {str(problems[0]).partition(': ')[2]}"


def _phrase(hint: Any) -> str:
    """Return what an annotation stands for in a message, such as "a number in (0, 1]"."""
    allowed, inside = range_of(hint), get_args(hint)
    if allowed is not None:
        return f"{_KINDS[inside[0]][1]} in {allowed.interval}"
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, inside))}"
    if hint is None or hint is type(None):
        return "null"
    return _KINDS[hint][1] if hint in _KINDS else "a section" if get_origin(hint) is dict else "a list"


def _items_misfit(value: Any, hint: Any) -> str | None:
    """Check the entries of a list or tuple; other iterables are accepted as they are."""
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        return "is not a list: write it in brackets, such as [a, b]"
    if not isinstance(value, Sequence):
        return None
    items = get_args(hint) if get_origin(hint) is tuple else get_args(hint) * len(value)
    if len(value) != len(items):
        return f"has {len(value)} entries: give {len(items)}"
    problems = (misfit(one, item) for one, item in zip(value, items, strict=True))
    return next((f"has an entry that {problem}" for problem in problems if problem is not None), None)


def checked(init: Init) -> Init:
    """Decorate a constructor, so that each argument is checked against its annotation first.

    Raises:
        ValueError: (when it is called) an argument that does not fit, with its rule and remedy.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def checking(self: Any, *arguments: Any, **keywords: Any) -> None:
        hints = hints_of(init)
        for name, value in signature.bind(self, *arguments, **keywords).arguments.items():
            check(name, value, hints.get(name, Any))
        init(self, *arguments, **keywords)

    return checking  # type: ignore[return-value]


def check_fields(instance: Any) -> None:
    """Check the fields of a dataclass against their annotations, as `checked` does; for ``__post_init__``.

    Raises:
        ValueError: a field that does not fit, with its rule and remedy.
    """
    kind: Callable[..., Any] = type(instance)
    hints = hints_of(kind)
    for field in fields(instance):
        check(field.name, getattr(instance, field.name), hints[field.name])


def check(name: str, value: Any, hint: Any) -> None:
    """Raise ValueError unless `value` fits `hint` (see `misfit`)."""
    problem = misfit(value, hint)
    if problem is not None:
        raise ValueError(f"{name} {shown(value)} {problem}")


def shown(value: Any) -> str:
    """Return a value as a message shows it: as YAML has it, shortened in the middle."""
    special = {None: "null", True: "true", False: "false"}
    text = special[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-16:]}"


def parameters_of(target: Callable[..., Any]) -> Mapping[str, Any]:
    """Return keyword -> annotation of what a class's constructor, or a function, takes; `Any` where there is none."""
    callee = target.__init__ if inspect.isclass(target) and not is_dataclass(target) else target
    hints = hints_of(callee)
    return {name: hints.get(name, Any) for name in inspect.signature(target).parameters}


@functools.cache
def hints_of(target: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a function or class, evaluated; none where one names what is not imported."""
    try:
        return typing.get_type_hints(target, include_extras=True)
    except NameError:  # imported for type checking alone, as in libraries
        return {}
