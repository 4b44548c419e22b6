"""Checking what was typed for the configuration, beyond what Hydra checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf

from dlmkit.config.composition import choices_of, compose_groups, is_group
from dlmkit.nested import flatten
from dlmkit.ranges import shown
from dlmkit.renames import renamed_key
from dlmkit.text_hints import nearest

OWN_SECTIONS = ("batch", "budget", "non_finite", "validation")
"""Sections that the kit reads key by key; others are a constructor's."""

SECTIONS = (*OWN_SECTIONS, "trainer", "vocab", "callbacks", "logger")


def check_overrides(config: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse what Hydra lets through: a value of another type than the default's, and added keys that nothing reads.

    Args:
        config: the composed configuration.
        overrides: what was typed for it, such as ["optimizer.lr=1e-3", "+optimizer.amsgrad=true"].

    Raises:
        ValueError: the first override that is refused.
    """
    defaults = compose_groups(overrides)
    for name in SECTIONS:
        if not isinstance(value := OmegaConf.select(config, name), DictConfig):
            raise ValueError(
                f"{name} {shown(value)} is not a section: set keys of it, as in {_example(defaults, name)}"
            )
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if is_group(key) or override.is_delete() or key == "init_from":  # which is a path or a section
            continue
        default = OmegaConf.select(defaults, key)
        section = key.partition(".")[0]
        added = (override.is_add() or override.is_force_add()) and default is None
        if added and ("." not in key or section in OWN_SECTIONS or renamed_key(key) is not None):
            raise ValueError(unknown_key(key, overrides))
        value = OmegaConf.select(config, key)
        problem = _misfit(key, value, default)
        if problem is not None:
            raise ValueError(f"{key} {shown(value)} is not {problem}")


def _misfit(key: str, value: Any, default: Any) -> str | None:
    """Return what `value` should be, going by the default, or ``None`` when it may be right."""
    if value is None or default is None:
        return None
    if isinstance(default, DictConfig) and "_target_" in default:
        return None  # an object of a library's: another one, or a name for one, may take its place
    if isinstance(default, DictConfig) and not isinstance(value, DictConfig):
        names = list(map(str, default))
        return f"a section with {', '.join(names)}: set one of these, such as {key}.{names[0]}=VALUE"
    if isinstance(default, ListConfig) and not isinstance(value, ListConfig):
        return f"a list such as the default {default}: write it in brackets"
    if isinstance(default, bool):
        return None if isinstance(value, bool) else f"true or false: the default is {str(default).lower()}"
    if isinstance(value, bool):
        value = None if isinstance(default, (int, float)) else value
    if isinstance(default, int) and not isinstance(value, int):
        whole = isinstance(value, float) and value.is_integer()
        return f"a whole number: write {int(value)}" if whole else f"a whole number such as the default {default}"
    if isinstance(default, float) and not isinstance(value, (int, float)):
        return f"a number such as the default {default}"
    return None


def _example(defaults: DictConfig, section: str) -> str:
    """Return how a key of a section is set."""
    names = [str(name) for name in defaults[section]]
    return f"{section}.{names[0]}=VALUE" if names else f"{section}=[NAME]"


def unknown_key(key: str, overrides: Sequence[str]) -> str:
    """Return one line for a key that the configuration does not have: its new name, or what stands beside it."""
    if (line := renamed_key(key)) is not None:
        return line
    config = compose_groups(overrides)
    keys = list(flatten(OmegaConf.to_container(config, resolve=False)))
    known = sorted({*keys, *(section for name in keys for section in _sections(name))})
    if key in known:
        return f"{key} was taken away with ~: every run needs it, so leave that out"
    parent, _, own = key.rpartition(".")
    while parent and parent not in known:
        parent = parent.rpartition(".")[0]
    if parent in ("callbacks", "logger") and own in choices_of(parent):
        return f"{key} is not set, since {own} is not among the {parent}: add it to the list, as in {parent}=[{own}]"
    siblings = sorted({name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == parent})
    if not siblings:
        return f"{key} is no key of the configuration: {parent} is one value, set it with {parent}=VALUE"
    where = f"{parent} has" if parent else "the keys are"
    same_name = [name for name in keys if name.rpartition(".")[2] == own]
    hint = f" (nearest: {same_name[0]})" if same_name else nearest(key, known)
    return f"{key} is no key of the configuration: {where} {', '.join(siblings)}{hint}"


def _sections(key: str) -> Iterator[str]:
    while "." in key:
        key = key.rpartition(".")[0]
        yield key
