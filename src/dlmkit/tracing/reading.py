"""JSON to records, by their type hints; what does not fit is named by its place."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any, Literal, get_args, get_origin

REMEDY = "the trace is damaged, make it again"


def damaged(what: str) -> ValueError:
    """Return the error for a trace that is not whole."""
    return ValueError(f"{what}: {REMEDY}")


def read(kind: Any, value: Any, where: str) -> Any:
    """Return `value`, as json.loads gives it, as `kind`: a frozen record, list, dict, union, Literal or plain type.

    Raises:
        ValueError: it is something else; `where` is its place in the message.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is list:
        items = _expect(isinstance(value, list), value, where)
        return [read(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(items)]
    if origin is dict:
        items = _expect(isinstance(value, dict), value, where)
        return {key: read(arguments[1], item, f"{where}.{key}") for key, item in items.items()}
    if origin is Literal:
        return _expect(isinstance(value, str) and value in arguments, value, where)
    if origin in (typing.Union, types.UnionType):
        return _read_union(arguments, value, where)
    if dataclasses.is_dataclass(kind):
        return _read_record(kind, value, where)
    if kind is float:
        return float(_expect(type(value) in (int, float), value, where))
    return _expect(type(value) is kind, value, where)


def _read_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None:
        return _expect(types.NoneType in kinds, value, where)
    if type(value) in kinds:  # a plain value keeps its type: 1 is no 1.0
        return value
    kind, *others = [kind for kind in kinds if kind is not types.NoneType]
    return _expect(False, value, where) if others else read(kind, value, where)


def _read_record(kind: Any, value: Any, where: str) -> Any:
    hints = _hints(kind)
    content = _expect(isinstance(value, dict), value, where)
    missing, unknown = [key for key in hints if key not in content], [key for key in content if key not in hints]
    if missing or unknown:
        raise damaged(f"{where} lacks {missing[0]}" if missing else f"{where} has an unknown key {unknown[0][:40]!r}")
    return kind(**{key: read(hint, content[key], f"{where}.{key}") for key, hint in hints.items()})


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _expect(fits: bool, value: Any, where: str) -> Any:
    if not fits:
        shown = repr(value)
        raise damaged(f"{where} is {shown if len(shown) <= 40 else shown[:37] + '...'}")
    return value
