"""From part=name on the command line to candidates: a YAML of conf/, or a class by its import path."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dlmkit import config
from dlmkit.laws.pairing import INTERFACES, Candidate, Toy
from dlmkit.laws.toys import LENGTH
from dlmkit.renames import renamed_choice

FILLED_IN = {"schedule": "${schedule}", "vocab_size": "${vocab.size}", "mask_id": "${vocab.mask_id}"}
"""Keywords that the other parts of a configuration give to a class that is named by its import path."""

FILLED_IN_BACKBONE = {**FILLED_IN, "bos_id": "${vocab.bos_id}", "causal": "${causal}", "shift": "${causal}"}
"""The same of a backbone."""


@dataclass(frozen=True)
class Selection:
    """What was named on the command line.

    Attributes:
        candidates: the parts of every group; all of conf/ for a group that was not named.
        named: the groups that were named.
    """

    candidates: dict[str, list[Candidate]]
    named: set[str]


def select(arguments: Sequence[str]) -> Selection:
    """Return the candidates of every group, and the groups that were named.

    Args:
        arguments: part=name and part.key=value; none for all parts of conf/.

    Raises:
        ValueError: a group without laws, an unknown part or keyword.
    """
    names: dict[str, list[str]] = {}
    changes: dict[str, list[str]] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        group, dot, _ = key.partition(".")
        if not equals or not value:
            raise ValueError(f"{argument!r} is not part=name: write, for example, schedule=linear")
        if group not in INTERFACES:
            raise ValueError(
                f"{group!r} is no part that has laws: choose one of {', '.join(INTERFACES)}"
                f"{config.nearest(group, list(INTERFACES))}"
            )
        if dot:
            changes.setdefault(group, []).append(argument.partition(".")[2])
        else:
            names.setdefault(group, []).extend(value.split(","))
    for group in changes:
        if group not in names:
            raise ValueError(f"{group}.{changes[group][0]} without a part: say which, such as {group}=NAME")
    parts = {
        group: [find(group, name, changes.get(group, [])) for name in names.get(group, part_names(group))]
        for group in INTERFACES
    }
    return Selection(parts, set(names))


def part_names(group: str) -> list[str]:
    """Return the parts of conf/group: linear, log_linear, ... for "schedule"."""
    return sorted(path.stem for path in (config.conf_dir() / group).glob("*.yaml"))


def find(group: str, name: str, changes: Sequence[str] = ()) -> Candidate:
    """Return the part of that name in conf/, or the class at that import path, with `changes` ("key=value") applied."""
    file = config.conf_dir() / group / f"{name}.yaml"
    if file.is_file():
        node = OmegaConf.load(file)
    elif "." in name:
        node = class_node(group, name, [change.partition("=")[0] for change in changes])
    else:
        if (line := renamed_choice(group, name)) is not None:
            raise ValueError(line)
        choices = part_names(group)
        raise ValueError(
            f"{group}={name} is unknown: choose one of {', '.join(choices)}{config.nearest(name, choices)}, or give a"
            f" class by its import path, such as {group}=my_package.my_module.MyClass"
        )
    assert isinstance(node, DictConfig)
    for change in changes:
        key = change.partition("=")[0]
        if key not in node:
            keys = [str(one) for one in node if not str(one).startswith("_")]
            raise ValueError(f"{group}.{key} is no keyword of {group}={name}: it has {', '.join(keys) or 'none'}")
    return candidate(group, name, DictConfig(OmegaConf.merge(node, OmegaConf.from_dotlist(list(changes)))))


def candidate(group: str, name: str, node: DictConfig) -> Candidate:
    """Return the candidate that Hydra instantiates from a node."""

    def make(toy: Toy, others: Sequence[Candidate]) -> Any:
        nodes = {other.group: other.node for other in others}
        return instantiated(f"{group}={name}", group, toy_config({**nodes, group: node}, toy))

    return Candidate(group, name, "schedule" in node, make, node)


def class_node(group: str, path: str, given: Sequence[str]) -> DictConfig:
    """Return the node of a class without a YAML: its defaults, and the vocabulary and schedule if it takes them."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` has it: a module beside the user is found
    module, _, name = path.rpartition(".")
    try:
        if path.startswith("."):
            raise ImportError("a relative path")
        target = getattr(importlib.import_module(module), name)  # Hydra's get_class logs three more lines
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{group}={path} cannot be imported ({' '.join(str(error).split())}):"
            " give package.module.Class, importable from this folder"
        ) from error
    if not (isinstance(target, type) and issubclass(target, INTERFACES[group])):
        raise ValueError(
            f"{group}={path} is no {INTERFACES[group].__name__}: derive the class from {_full(INTERFACES[group])}"
        )
    node: dict[str, Any] = {"_target_": path}
    filled_in = FILLED_IN_BACKBONE if group == "backbone" else FILLED_IN
    for name, parameter in inspect.signature(target).parameters.items():
        if name in filled_in and name not in given:
            node[name] = filled_in[name]
        elif parameter.default is not inspect.Parameter.empty:
            node[name] = parameter.default
        elif name in given:
            node[name] = None
        elif parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise ValueError(f"{group}={path} needs {name}: give {group}.{name}=VALUE")
    return OmegaConf.create(node, flags={"allow_objects": True})


def _full(target: type) -> str:
    return f"{target.__module__}.{target.__qualname__}"


def toy_config(nodes: dict[str, Any], toy: Toy) -> DictConfig:
    """Return a configuration that holds the nodes and what their interpolations refer to, at a size to enumerate."""
    vocab = {"size": toy.vocab_size, "mask_id": toy.mask_id, "bos_id": toy.bos_id, "eos_id": None}
    content = {"vocab": vocab, "causal": toy.causal, **nodes}
    return OmegaConf.create(content, flags={"allow_objects": True})


def instantiated(label: str, group: str, toy: DictConfig) -> Any:
    """Instantiate the part in its configuration.

    Raises:
        ValueError: the part refuses its arguments.
    """
    if (toy[group].get("block_size") or 0) >= LENGTH:  # else the laws would have a single block
        toy[group].block_size = LENGTH - 1
    try:
        return instantiate(toy[group], _convert_="all" if group == "backbone" else "none")
    except InstantiationException as error:
        cause = error.__cause__ or error
        # The part's own message is the one for the user.
        raise ValueError(str(cause) if isinstance(cause, ValueError) else f"{label}: {cause}") from error
