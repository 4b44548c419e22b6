"""Every value of a composed configuration, checked against its declared type and range before anything is built."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from dlmkit.config.composition import choices_of, conf_dir, fused, tensor_parallel_size
from dlmkit.config.declared import declared
from dlmkit.ranges import misfit, parameters_of, part_of, shown
from dlmkit.renames import renamed_key
from dlmkit.text_hints import nearest

TARGET = "_target_"
KEYWORDS_OF = {"trainer": "lightning.pytorch.Trainer", "non_finite": "dlmkit.callbacks.finite.FiniteSteps"}
LISTS = ("callbacks", "logger")  # sections of objects under names of the user's choice


def check_values(config: DictConfig) -> None:
    """Refuse values of another type than declared, or outside of their range, and keywords that a part does not have.

    Declared are the annotations of constructors, and `config.declared` for sections and for objects of libraries. What
    an interpolation gives is checked where it is written, a value that is still missing (???) where it is needed.

    Raises:
        ValueError: the first value that is refused, under its full key.
    """
    for problem in problems(config):
        raise ValueError(problem)
    _check_micro_size(config)
    _check_fused(config)
    _check_eight_bits(config)


def problems(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield one line for each value that is refused."""
    target = _target(config, prefix)
    if isinstance(target, str):
        yield target
        return
    hints = hints_at(config, prefix)
    if target is not None:
        yield from _keyword_problems(config, prefix, target, hints)
    for name in map(str, config):
        key = f"{prefix}.{name}" if prefix else name
        if OmegaConf.is_interpolation(config, name) or OmegaConf.is_missing(config, name):
            continue
        value = config[name]
        problem = _problem(key, value, declared(key, hints.get(name, Any)), in_list=prefix in LISTS)
        if problem is not None:
            yield f"{key} {shown(_plain(value))} {problem}"
        elif isinstance(value, DictConfig):
            yield from problems(value, key)


def hints_at(node: DictConfig, key: str) -> dict[str, Any]:
    """Return keyword -> annotation of what a node calls; none for a plain section."""
    target = _target(node, key)
    return {} if target is None or isinstance(target, str) else dict(parameters_of(target))


def _problem(key: str, value: Any, hint: Any, in_list: bool) -> str | None:
    """Return what is wrong with one value, or ``None``.

    Args:
        key: full key.
        value: of the key.
        hint: its type.
        in_list: whether the key names one of the callbacks or loggers.
    """
    plain = _plain(value)
    if key.endswith(".filename") and isinstance(value, str) and _leaves_folder(value):
        return "leaves the folder: give a name without '..'"
    if in_list or part_of(hint) is not None:
        is_object = isinstance(value, DictConfig) and TARGET in value
        return None if is_object else f"has no {TARGET}: set keys below it, or leave it out with ~"
    if isinstance(plain, float) and not math.isfinite(plain) and misfit(plain, hint) is None:
        return "is not finite: give a number"
    return None if isinstance(plain, dict) and TARGET in plain else misfit(plain, hint)


def _leaves_folder(name: str) -> bool:
    return ".." in Path(name).parts or Path(name).is_absolute()


def _target(node: DictConfig, key: str) -> Any:
    """Return what a node calls: ``None`` for a plain section, a line where it cannot be imported."""
    path = KEYWORDS_OF.get(key) or node.get(TARGET)
    if not isinstance(path, str):
        return f"{key}.{TARGET} {shown(path)} is not text: give package.module.Class" if TARGET in node else None
    try:
        found = resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        found = error
    if callable(found) and not isinstance(found, Exception):
        return found
    return f"{key}.{TARGET} {path!r} cannot be imported ({found}): give package.module.Class"


def _keyword_problems(node: DictConfig, key: str, target: Any, hints: dict[str, Any]) -> Iterator[str]:
    """Yield one line for each keyword that the target does not take, and for each that it needs and has not."""
    signature = inspect.signature(target)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        return
    group = key.partition(".")[0]
    part = f"{group}={choice_of(group, node[TARGET])}" if TARGET in node and key == group else target.__name__
    for name in map(str, node):
        if (new_name := renamed_key(f"{key}.{name}")) is not None:
            yield new_name
        elif not name.startswith("_") and name not in hints:
            known = list(hints)
            hint = nearest(name, known) or f" (it has {', '.join(known[:20]) or 'none'})"
            other = _other_choice(group, name) if TARGET in node and key == group else ""
            yield f"{key}.{name} is no setting of {part}{hint}: leave it out{other}"
    partial = node.get("_partial_") is True
    for parameter in signature.parameters.values():
        optional = parameter.default is not parameter.empty or parameter.kind is parameter.VAR_POSITIONAL
        if not optional and not partial and parameter.name not in node:
            yield f"{key}.{parameter.name} is not set: give {key}.{parameter.name}=VALUE"


def choice_of(group: str, target: str) -> str:
    """Return the first choice of a group that a target belongs to, or the name of the target's class."""
    for choice in choices_of(group):
        content = OmegaConf.load(conf_dir() / group / f"{choice}.yaml")
        if isinstance(content, DictConfig) and content.get(TARGET) == target:
            return choice
    return target.rpartition(".")[2]


def _other_choice(group: str, name: str) -> str:
    """Return a hint at the choices of a group that have a setting, or an empty text."""
    contents = {choice: OmegaConf.load(conf_dir() / group / f"{choice}.yaml") for choice in choices_of(group)}
    having = [choice for choice, content in contents.items() if isinstance(content, DictConfig) and name in content]
    return f", or set {group}={' or '.join(having)}" if having else ""


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=False) if isinstance(value, (DictConfig, ListConfig)) else value


def _check_micro_size(config: DictConfig) -> None:
    """Refuse micro-batches that do not fill the batch: `batch.micro_size` follows from the other numbers."""
    batch, trainer = config.batch, config.trainer
    shared = tensor_parallel_size(trainer.strategy)
    filled = batch.micro_size * batch.accumulate * trainer.devices * trainer.num_nodes // shared
    if filled != batch.size:
        raise ValueError(
            f"batch.micro_size {batch.micro_size} x batch.accumulate {batch.accumulate} x {trainer.devices} devices x"
            f" {trainer.num_nodes} nodes is {filled}, not batch.size {batch.size}: leave batch.micro_size out, it"
            " follows from the others"
        )


def _check_fused(config: DictConfig) -> None:
    """Refuse an optimizer that undoes the scaling of the loss in its step: gradients are clipped before."""
    if config.optimizer.get("fused") and not fused(config.trainer.precision):
        raise ValueError(
            f"optimizer.fused true does not go with trainer.precision {config.trainer.precision}, which scales the"
            " loss: leave it out, or train in bf16-mixed"
        )


def _check_eight_bits(config: DictConfig) -> None:
    """Refuse states of 8 bits beside weights of 64."""
    precision = config.trainer.precision
    if str(config.optimizer.get(TARGET)).endswith(".adamw_8bit") and str(precision).startswith("64"):
        raise ValueError(
            f"optimizer=adamw_8bit computes in float32, trainer.precision {precision} is finer: set optimizer=adamw, or"
            " another precision"
        )
