"""Finding and composing the configuration, and saying in one line what is wrong with it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException


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
    parts = accumulate * devices * num_nodes
    if parts < 1 or batch_size % parts:
        raise ValueError(
            f"batch.size {batch_size} does not divide into batch.accumulate {accumulate} x {devices} devices x"
            f" {num_nodes} nodes: choose a multiple of {parts}"
        )
    return batch_size // parts


def group_name(experiment: str | None) -> str:
    """Return the folder under runs/ of an experiment's runs ("single" without one)."""
    return "single" if experiment in (None, "None", "null", "") else str(experiment)


def run_name(overrides: str) -> str:
    """Return a run's folder name from the overrides that make it, such as "family=ar,seed=1"."""
    return overrides.replace("/", "-") if overrides else "default"


def flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every leaf of nested dictionaries."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def explain(error: BaseException) -> str | None:
    """Return one line for an error that the user can mend, or ``None`` for one that is the kit's own.

    Errors of parts reach Hydra as the cause of its own; the innermost ValueError is what the user should read.
    """
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, MissingConfigException) and cause.missing_cfg_file is not None:
            return _unknown_choice(cause)
    for cause in chain:
        if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and "is not in struct" in str(cause):
            return _unknown_key(str(cause.full_key))
    values = [
        cause for cause in chain if isinstance(cause, ValueError) and not isinstance(cause, OmegaConfBaseException)
    ]
    if values:
        return _one_line(str(values[-1]))
    if any(isinstance(cause, (HydraException, OmegaConfBaseException)) for cause in chain):
        return _one_line(str(error))
    return None


def _unknown_choice(error: MissingConfigException) -> str:
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    if group == "experiment" and not name:
        group, name = "", group
    choices = sorted(error.options or [])
    return f"{group}={name} is unknown: choose one of {', '.join(choices)}{_nearest(name, choices)}"


def _unknown_key(key: str) -> str:
    config = compose([], Path("."))
    keys = [name for name, _ in flatten(OmegaConf.to_container(config, resolve=False))]
    known = sorted({*keys, *(part for name in keys for part in _prefixes(name))})
    parent = key.rpartition(".")[0]
    siblings = sorted({name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == parent})
    where = f"{parent} has" if parent else "the keys are"
    return f"{key} is no key of the configuration: {where} {', '.join(siblings)}{_nearest(key, known)}"


def _prefixes(key: str) -> Iterator[str]:
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def _nearest(name: str, choices: list[str]) -> str:
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f" (nearest: {close[0]})" if close else ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _one_line(message: str) -> str:
    return " ".join(message.split())
