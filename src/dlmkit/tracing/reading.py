"""JSON to records, by their type hints; what does not fit is named by its place."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

REMEDY = "the trace is damaged, make it again"
LONGEST_SHOWN = 40

Reader = Callable[[Any], Any]


def damaged(what: str) -> ValueError:
    """Return the error for a trace that is not whole."""
    return ValueError(f"{what}: {REMEDY}")


def read(kind: Any, value: Any, name: str) -> Any:
    """Return `value`, as json.loads gives it, as `kind`: a frozen record, list, dict, union, Literal or plain type.

    Raises:
        ValueError: it is something else; the message has its place, which begins with `name`.
    """
    try:
        return _reader(kind)(value)
    except _MisfitError as misfit:
        raise damaged(f"{name}{''.join(reversed(misfit.place))} {misfit.what}") from None


class _MisfitError(Exception):
    """What does not fit; those who look into lists and records add where they were, so that a fit costs nothing."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what
        self.place: list[str] = []

    def inside(self, part: str) -> _MisfitError:
        self.place.append(part)
        return self


def _wrong(value: Any) -> _MisfitError:
    shown = repr(value)
    return _MisfitError(f"is {shown if len(shown) <= LONGEST_SHOWN else shown[: LONGEST_SHOWN - 3] + '...'}")


@functools.cache
def _reader(kind: Any) -> Reader:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is list:
        return _list_reader(_reader(arguments[0]))
    if origin is dict:
        return _dict_reader(_reader(arguments[1]))
    if origin is Literal:
        return _plain_reader(lambda value: isinstance(value, str) and value in arguments)
    if origin in (typing.Union, types.UnionType):
        return _union_reader(arguments)
    if dataclasses.is_dataclass(kind):
        return _record_reader(kind)
    if kind is float:
        return _plain_reader(lambda value: type(value) in (int, float), float)
    return _plain_reader(lambda value: type(value) is kind)


def _plain_reader(fits: Callable[[Any], bool], convert: Reader = lambda value: value) -> Reader:
    def read_plain(value: Any) -> Any:
        if not fits(value):
            raise _wrong(value)
        return convert(value)

    return read_plain


def _list_reader(item: Reader) -> Reader:
    def read_list(value: Any) -> Any:
        if not isinstance(value, list):
            raise _wrong(value)
        items: list[Any] = []
        try:
            for part in value:
                items.append(item(part))  # how many were read is the place of a misfit
        except _MisfitError as misfit:
            raise misfit.inside(f"[{len(items)}]") from None
        return items

    return read_list


def _dict_reader(item: Reader) -> Reader:
    def read_dict(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _wrong(value)
        return {key: _read_part(item, part, key[:LONGEST_SHOWN]) for key, part in value.items()}

    return read_dict


def _record_reader(kind: Any) -> Reader:
    readers = {key: _reader(hint) for key, hint in typing.get_type_hints(kind).items()}

    def read_record(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _wrong(value)
        if value.keys() != readers.keys():
            missing = [key for key in readers if key not in value]
            unknown = [key[:LONGEST_SHOWN] for key in value if key not in readers]
            raise _MisfitError(f"lacks {missing[0]}" if missing else f"has an unknown key {unknown[0]!r}")
        return kind(**{key: _read_part(part, value[key], key) for key, part in readers.items()})

    return read_record


def _union_reader(kinds: tuple[Any, ...]) -> Reader:
    """Plain types are told apart by the value's own, so that 1 stays 1; of records one at most may be among them."""
    plain = tuple(kind for kind in kinds if kind in (types.NoneType, bool, int, float, str))
    others = [_reader(kind) for kind in kinds if kind not in plain]
    number = float in plain and int not in plain

    def read_union(value: Any) -> Any:
        if type(value) in plain:
            return value
        if number and type(value) is int:
            return float(value)
        if not others:
            raise _wrong(value)
        return others[0](value)

    return read_union


def _read_part(reader: Reader, value: Any, key: str) -> Any:
    try:
        return reader(value)
    except _MisfitError as misfit:
        raise misfit.inside(f".{key}") from None
