"""Which classes a folder that somebody else may have written can name: the kit's own, and those that the user trusts.

A run folder and a Hugging Face folder state by import path (`_target_`) what their parts are. Importing and calling
what such a path names would run code of the folder's choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

KIT = "dlmkit"
TARGET = "_target_"
INTERPOLATION = "${"


def check_target(target: Any, kind: type, trust: Sequence[str], source: str) -> None:
    """Check that an import path may be imported, and that it names a class of `kind` where it is the kit's.

    Args:
        target: what the folder names.
        kind: base class of what may be named.
        trust: packages, modules or classes that the user trusts, such as "my_parts".
        source: where the path stands, for the message.

    Raises:
        ValueError: the path is neither a part of the kit nor trusted; one line with the remedy.
    """
    if not isinstance(target, str) or not all(name.isidentifier() for name in target.split(".")):
        raise ValueError(f"{source} names {target!r}, which is no import path of a class: it was not written by dlmkit")
    if any(target == trusted or target.startswith(f"{trusted}.") for trusted in trust):
        return
    if not _is_kits(target, kind):
        package = target.partition(".")[0]
        raise ValueError(
            f"{source} names {target}, which is no part of the kit, and importing it runs its code: if you know it, add"
            f" --trust {package} (in Python trust=({package!r},))"
        )


def _is_kits(target: str, kind: type) -> bool:
    """Return whether `target` is a class of `kind` that the kit defines, importing nothing but the kit."""
    module_name, _, name = target.rpartition(".")
    if module_name.partition(".")[0] != KIT:
        return False
    try:
        named = getattr(import_module(module_name), name, None)
    except ModuleNotFoundError:
        return False
    return isinstance(named, type) and issubclass(named, kind) and named.__module__.partition(".")[0] == KIT


def check_targets(node: Any, kind: type, trust: Sequence[str], source: str) -> None:
    """Check every import path in nested dictionaries and lists, as `check_target` does.

    Raises:
        ValueError: one that is refused, or a text that would be resolved once more and could become another one.
    """
    if isinstance(node, str) and INTERPOLATION in node:
        raise ValueError(f"{source} has {node!r}, an interpolation, where a run has values: dlmkit did not write it")
    if isinstance(node, dict):
        if TARGET in node:
            check_target(node[TARGET], kind, trust, source)
        for key, value in node.items():
            check_targets(key, kind, trust, source)
            check_targets(value, kind, trust, source)
    elif isinstance(node, list):
        for value in node:
            check_targets(value, kind, trust, source)
