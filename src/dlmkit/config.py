"""Finding and composing the configuration, and saying in one line what is wrong with it."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from dlmkit import renames

OWN_SECTIONS = ("batch", "budget", "validation")  # read by the kit key by key; other sections are a constructor's
LONGEST_NAME = 180  # bytes of a run folder's name; file systems stop at 255


def conf_dir() -> Path:
    """Return the folder of the configuration groups: inside the installed package, or beside src/ in a checkout."""
    package = Path(__file__).parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent.parent / "conf"


def register_resolvers() -> None:
    """Teach OmegaConf the arithmetic that conf/train.yaml uses; harmless when repeated."""
    OmegaConf.register_new_resolver("num_steps", num_steps, replace=True)
    OmegaConf.register_new_resolver("micro_size", micro_size, replace=True)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("group_name", group_name, replace=True)


def compose(overrides: list[str], run_dir: Path) -> DictConfig:
    """Return the configuration that `dlmkit train *overrides` would run, for tools and tests."""
    register_resolvers()
    if GlobalHydra.instance().is_initialized():  # inside a run
        return hydra_compose("train", [*overrides, f"run_dir='{run_dir}'"])
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        return hydra_compose("train", [*overrides, f"run_dir='{run_dir}'"])


def num_steps(tokens: int, batch_size: int, length: int) -> int:
    """Return the optimizer steps that train on at least `tokens` tokens."""
    for name, value in (("budget.tokens", tokens), ("batch.size", batch_size), ("length", length)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} {value!r} is not a positive whole number: give one, such as {name}=16")
    return math.ceil(tokens / (batch_size * length))


def micro_size(batch_size: int, accumulate: int, devices: int | str, num_nodes: int) -> int:
    """Return the blocks that one device holds at a time."""
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(f"trainer.devices {devices!r} is not a positive number: say how many devices, such as 1")
    if not isinstance(accumulate, int) or accumulate < 1:
        raise ValueError(f"batch.accumulate {accumulate!r} is not a positive whole number: give one, such as 1")
    parts = accumulate * devices * num_nodes
    if batch_size % parts:
        raise ValueError(
            f"batch.size {batch_size} does not divide into batch.accumulate {accumulate} x {devices} devices x"
            f" {num_nodes} nodes: choose a multiple of {parts}"
        )
    return batch_size // parts


def group_name(experiment: str | None) -> str:
    """Return the folder under runs/ of an experiment's runs ("single" without one)."""
    return "single" if experiment in (None, "None", "null", "") else str(experiment)


def run_name(overrides: str) -> str:
    """Return a run's folder name from the overrides that make it, such as "family=ar,seed=1"; long ones are cut."""
    name = overrides.replace("/", "-") if overrides else "default"
    if len(name.encode()) <= LONGEST_NAME:
        return name
    mark = "..." + hashlib.sha256(overrides.encode()).hexdigest()[:8]
    return name.encode()[: LONGEST_NAME - len(mark)].decode(errors="ignore") + mark


def flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every leaf of nested dictionaries."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def check_overrides(config: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse what Hydra lets through: a value of another type than the default's, and added keys that nothing reads.

    Args:
        config: the composed configuration.
        overrides: what was typed for it, such as ["optimizer.lr=1e-3", "+optimizer.amsgrad=true"].

    Raises:
        ValueError: the first override that cannot be meant.
    """
    defaults = _compose_groups(overrides)
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if _is_group(key) or override.is_delete() or key == "init_from":  # which is a path or a section
            continue
        default = OmegaConf.select(defaults, key)
        section = key.partition(".")[0]
        unread = "." not in key or section in OWN_SECTIONS or renamed(key) is not None
        if override.is_add() and default is None and unread:
            raise ValueError(_unknown_key(key, overrides))
        value = OmegaConf.select(config, key)
        problem = _misfit(key, value, default)
        if problem is not None:
            raise ValueError(f"{key} {value!r} is not {problem}")


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


def explain(error: BaseException, overrides: Sequence[str] = ()) -> str | None:
    """Return one line for an error that the user can mend, or ``None`` for one that is the kit's own.

    Errors of parts reach Hydra as the cause of its own; the outermost ValueError is what the user should read.

    Args:
        error: what was raised.
        overrides: what was typed, from which the choices and keys at hand follow.
    """
    chain = list(_causes(error))
    line = _explain(chain, overrides)
    notes = [note for cause in chain for note in getattr(cause, "__notes__", ())]
    return None if line is None else _one_line("; ".join([line, *dict.fromkeys(notes)]))


def _explain(chain: list[BaseException], overrides: Sequence[str]) -> str | None:
    for cause in chain:
        if isinstance(cause, MissingConfigException) and cause.missing_cfg_file is not None:
            return _unknown_choice(cause)
        if str(cause).startswith("Config group override must be a string"):
            return _unnamed_choice(overrides)
        if isinstance(cause, OverrideParseException):
            key, equals, value = cause.override.partition("=")
            example = f"{key}='\"{value}\"'" if equals and '"' not in value else "key='\"a, b\"'"
            return (
                f"{cause.override!r} is not key=value: write key=value without spaces around =, and put a value with"
                f" spaces, commas, brackets or = in two pairs of quotes, such as {example}"
            )
        if isinstance(cause, ConfigCompositionException) and str(cause).startswith("Ambiguous value for argument"):
            override = str(cause).partition("'")[2].partition("'")[0]
            key = override.partition("=")[0]
            return (
                f"{override} has several values: add -m to run each of them, write {key}=[a,b] for one list, or"
                f" {key}='\"a,b\"' for one text with a comma"
            )
        if isinstance(cause, MissingMandatoryValue):
            return f"{cause.full_key} is not set: give {cause.full_key}=VALUE"
        if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and "is not in struct" in str(cause):
            return _unknown_key(str(cause.full_key), overrides)
    values = [
        cause for cause in chain if isinstance(cause, ValueError) and not isinstance(cause, OmegaConfBaseException)
    ]
    if values:
        return str(values[0])
    for cause, origin in pairwise(chain):
        if isinstance(cause, InstantiationException) and isinstance(origin, TypeError):  # keywords that do not fit
            key = str(cause).rpartition("full_key: ")[2]
            refused = [line for word in str(origin).split("'") if (line := renamed(f"{key}.{word}"))]
            return refused[0] if refused else f"{key} does not fit its part: {origin}"
    if any(isinstance(cause, (HydraException, OmegaConfBaseException)) for cause in chain):
        return str(chain[0])
    return None


def _unknown_choice(error: MissingConfigException) -> str:
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    if group == "experiment" and not name:
        group, name = "", group
    if not _is_group(group):
        return f"there is no configuration {error.missing_cfg_file}: `dlmkit train` has train, with groups under it"
    choices = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
    own = "; a class of your own wants a YAML in a folder given by --config-dir" if "." in name else ""
    return f"{group}={name} is unknown: choose one of {', '.join(choices)}{nearest(name, choices)}{own}"


def _unnamed_choice(overrides: Sequence[str]) -> str:
    for override in overrides:
        group, _, name = override.partition("=")
        choices = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
        if _is_group(group) and name not in choices:
            return f"{override} is unknown: choose one of {', '.join(choices)}"
    return f"{' '.join(overrides)}: something stands before no =; write key=value"


def renamed(key: str) -> str | None:
    """Return the line that refuses a key of an earlier version (or one below it), or ``None`` for any other key."""
    for old, new in renames.KEYS.items():
        if key == old or key.startswith(f"{old}."):
            name = new + key.removeprefix(old)
            return f"{key} is now {name}: write {name}=VALUE"
    return None


def _unknown_key(key: str, overrides: Sequence[str]) -> str:
    if line := renamed(key):
        return line
    config = _compose_groups(overrides)
    keys = [name for name, _ in flatten(OmegaConf.to_container(config, resolve=False))]
    known = sorted({*keys, *(part for name in keys for part in _prefixes(name))})
    if key in known:
        return f"{key} was taken away with ~: every run needs it, so leave that out"
    parent, _, own = key.rpartition(".")
    while parent and parent not in known:
        parent = parent.rpartition(".")[0]
    siblings = sorted({name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == parent})
    if not siblings:
        return f"{key} is no key of the configuration: {parent} is one value, set it with {parent}=VALUE"
    where = f"{parent} has" if parent else "the keys are"
    same_name = [name for name in keys if name.rpartition(".")[2] == own]
    hint = f" (nearest: {same_name[0]})" if same_name else nearest(key, known)
    return f"{key} is no key of the configuration: {where} {', '.join(siblings)}{hint}"


def _is_group(key: str) -> bool:
    return bool(key) and (conf_dir() / key.partition("@")[0]).is_dir()


def _compose_groups(overrides: Sequence[str]) -> DictConfig:
    """Compose what the chosen parts bring along, without any value that was set; sweeps count by their first run."""
    groups = []
    for override in overrides:
        key, _, value = override.partition("=")
        if _is_group(key) and value:
            groups.append(f"{key}={value if value.startswith('[') else value.partition(',')[0]}")
    try:
        return compose(groups, Path("."))
    except HydraException:  # one of the choices is what is wrong
        return compose([], Path("."))


def _prefixes(key: str) -> Iterator[str]:
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def nearest(name: str, choices: list[str]) -> str:
    """Return " (nearest: CHOICE)" for the choice that is spelt most like `name`, or nothing."""
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f" (nearest: {close[0]})" if close else ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _one_line(message: str) -> str:
    return " ".join(message.split())
