"""One line for an error that a user can correct.

Hydra raises one class for several mistakes, so its wording tells them apart; tests/config pins that wording.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

import yaml
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from dlmkit.config.composition import choices_of, is_group
from dlmkit.config.overrides import unknown_key
from dlmkit.renames import renamed, renamed_choice, renamed_key
from dlmkit.text_hints import nearest

CHOICE_IS_NO_TEXT = "Config group override must be a string"
SEVERAL_VALUES = "Ambiguous value for argument"
KEY_IS_UNKNOWN = "is not in struct"
OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError", "_ArrayMemoryError")
CPU_OUT_OF_MEMORY = "can't allocate memory"
PART_OF_ERROR = "full_key: "
UNKNOWN_KEYWORD = re.compile(r"unexpected keyword argument '(\w+)'")


def explain(error: BaseException, overrides: Sequence[str] = ()) -> str | None:
    """Return one line for an error that the user can correct, or ``None`` for one that is a fault of the kit.

    A part's ValueError is the cause of an error of Hydra's; of several, the outermost is shown.

    Args:
        error: what was raised.
        overrides: what was typed; choices and keys that the line names depend on it.
    """
    chain = list(_causes(error))
    values = [one for one in chain if isinstance(one, ValueError) and not _is_hydras(one)]
    line = str(values[0]) if values else _explain_file(chain) or _explain_memory(chain)
    line = line or _explain_hydra(chain, overrides) or _explain_choice(error, overrides)
    notes = [note for cause in chain for note in getattr(cause, "__notes__", ())]
    return None if line is None else _one_line("; ".join([line, *dict.fromkeys(notes)]))


def _explain_file(chain: list[BaseException]) -> str | None:
    """Return one line for a file that cannot be read or written, or ``None``."""
    for one in chain:
        if isinstance(one, OSError) and one.filename is not None and one.strerror is not None:
            return f"{str(one.filename)!r} cannot be used ({one.strerror}): check that path and its permissions"
    return None


def _explain_memory(chain: list[BaseException]) -> str | None:
    """Return one line for memory that does not suffice, of a GPU or of the machine, or ``None``."""
    for one in chain:
        if type(one).__name__ in OUT_OF_MEMORY or CPU_OUT_OF_MEMORY in str(one):
            return (
                f"out of memory ({str(one).partition('. ')[0] or 'of the machine'}): lower batch.size, raise"
                " batch.accumulate, or take a smaller backbone"
            )
    return None


def _explain_choice(error: BaseException, overrides: Sequence[str]) -> str | None:
    """Return one line for a choice that is no name, such as callbacks=[1], of which Hydra makes a TypeError."""
    if not isinstance(error, (TypeError, AttributeError)):
        return None
    for override in overrides:
        group, _, value = override.lstrip("+").partition("=")
        if is_group(group) and value.startswith(("[", "{")):
            names = yaml.safe_load(value)  # a list that Hydra has parsed, which YAML reads too
            if not all(isinstance(name, str) for name in (names if isinstance(names, list) else [names])):
                return f"{override} names no choice: choose one of {', '.join(choices_of(group))}"
    return None


def _is_hydras(cause: BaseException) -> bool:
    """Return whether an error is Hydra's or OmegaConf's; one of Hydra's is a plain ValueError."""
    return isinstance(cause, (HydraException, OmegaConfBaseException)) or str(cause).startswith(CHOICE_IS_NO_TEXT)


def _explain_hydra(chain: list[BaseException], overrides: Sequence[str]) -> str | None:
    """Return one line for errors of which at least one is Hydra's, or ``None``."""
    if not any(map(_is_hydras, chain)):
        return None
    new_names = filter(None, map(renamed, overrides))
    specific = filter(None, (_explain_one(cause, overrides) for cause in chain))
    return next(new_names, None) or next(specific, None) or _explain_keyword(chain) or str(chain[0])


def _explain_one(cause: BaseException, overrides: Sequence[str]) -> str | None:
    if isinstance(cause, MissingConfigException) and cause.missing_cfg_file is not None:
        return _unknown_choice(cause.missing_cfg_file)
    if str(cause).startswith(CHOICE_IS_NO_TEXT):
        return _unnamed_choice(overrides)
    if isinstance(cause, OverrideParseException):
        return _unparsed(cause.override)
    if isinstance(cause, ConfigCompositionException) and str(cause).startswith(SEVERAL_VALUES):
        return _several_values(str(cause).partition("'")[2].partition("'")[0])
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key} is not set: give {cause.full_key}=VALUE"
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and KEY_IS_UNKNOWN in str(cause):
        return unknown_key(str(cause.full_key), overrides)
    return None


def _explain_keyword(chain: list[BaseException]) -> str | None:
    """Return one line for keywords that a part's constructor does not take."""
    for cause, origin in pairwise(chain):
        if isinstance(cause, InstantiationException) and isinstance(origin, TypeError):
            key = str(cause).rpartition(PART_OF_ERROR)[2]
            keyword = UNKNOWN_KEYWORD.search(str(origin))
            new_name = None if keyword is None else renamed_key(f"{key}.{keyword[1]}")
            return new_name or f"{key} does not fit its part: {origin}"
    return None


def _unknown_choice(missing: str) -> str:
    group, _, name = missing.rpartition("/")
    if group == "experiment" and not name:
        group, name = "", group
    if (line := renamed_choice(group, name)) is not None:
        return line
    if not is_group(group):
        return f"there is no configuration {missing}: `dlmkit train` has train, with groups under it"
    choices = choices_of(group)
    own = "; a class of your own needs a YAML file in a folder given by --config-dir" if "." in name else ""
    return f"{group}={name} is unknown: choose one of {', '.join(choices)}{nearest(name, choices)}{own}"


def _unnamed_choice(overrides: Sequence[str]) -> str:
    for override in overrides:
        group, _, name = override.partition("=")
        if is_group(group) and name not in choices_of(group):
            return f"{override} is unknown: choose one of {', '.join(choices_of(group))}"
    return f"{' '.join(overrides)}: a value stands without its key; write key=value"


def _unparsed(override: str) -> str:
    key, equals, value = override.partition("=")
    example = f"{key}='\"{value}\"'" if equals and '"' not in value else "key='\"a, b\"'"
    return (
        f"{override!r} is not key=value: write key=value without spaces around =, and put a value with"
        f" spaces, commas, brackets, = or letters beyond a-z in two pairs of quotes, such as {example}"
    )


def _several_values(override: str) -> str:
    key = override.partition("=")[0]
    return (
        f"{override} has several values: add -m to run each of them, write {key}=[a,b] for one list, or"
        f" {key}='\"a,b\"' for one text with a comma"
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _one_line(message: str) -> str:
    return " ".join(message.split())
