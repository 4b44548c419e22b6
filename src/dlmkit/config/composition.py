"""Composing the configuration, and the functions that its files interpolate."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from dlmkit.ranges import COUNT

LONGEST_NAME = 180  # bytes of a run folder's name; file systems stop at 255


def conf_dir() -> Path:
    """Return the folder of the configuration groups: inside the installed package, or beside src/ in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent.parent / "conf"


def register_resolvers() -> None:
    """Register the functions that conf/train.yaml interpolates; may be called more than once."""
    OmegaConf.register_new_resolver("num_steps", num_steps, replace=True)
    OmegaConf.register_new_resolver("micro_size", micro_size, replace=True)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("group_name", group_name, replace=True)
    OmegaConf.register_new_resolver("path_name", path_name, replace=True)
    OmegaConf.register_new_resolver("fused", fused, replace=True)


def compose(overrides: list[str], run_dir: Path) -> DictConfig:
    """Return the configuration that `dlmkit train *overrides` would run, for tools and tests."""
    register_resolvers()
    if GlobalHydra.instance().is_initialized():  # inside a run
        return hydra_compose("train", [*overrides, f"run_dir='{run_dir}'"])
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        return hydra_compose("train", [*overrides, f"run_dir='{run_dir}'"])


def is_group(key: str) -> bool:
    """Return whether a key names a configuration group, such as "schedule"."""
    return bool(key) and (conf_dir() / key.partition("@")[0]).is_dir()


def choices_of(group: str) -> list[str]:
    """Return the names of the files in a group, sorted."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def compose_groups(overrides: Sequence[str]) -> DictConfig:
    """Compose the chosen parts with their default values: no value that was typed, and a sweep's first choice."""
    groups = []
    for override in overrides:
        key, _, value = override.partition("=")
        if is_group(key) and value:
            groups.append(f"{key}={value if value.startswith('[') else value.partition(',')[0]}")
    sources = GlobalHydra.instance().config_loader().get_sources() if GlobalHydra.instance().is_initialized() else []
    return _composed(tuple(groups), conf_dir(), tuple(source.full_path() for source in sources))


@lru_cache(maxsize=64)
def _composed(groups: tuple[str, ...], conf: Path, sources: tuple[str, ...]) -> DictConfig:
    """Compose groups of the configuration in `conf` and in other sources; the runs of a sweep often share them."""
    try:
        composed = compose(list(groups), Path("."))
    except HydraException:  # one of the choices is what is wrong
        composed = compose([], Path("."))
    OmegaConf.set_readonly(composed, True)
    return composed


def num_steps(tokens: int, batch_size: int, length: int) -> int:
    """Return the optimizer steps that train on at least `tokens` tokens."""
    for name, value in (("budget.tokens", tokens), ("batch.size", batch_size), ("length", length)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} {value!r} is not a positive whole number: give one, such as {name}=16")
    steps = -(-tokens // (batch_size * length))
    if steps > COUNT.high:
        raise ValueError(
            f"budget.tokens {tokens} is {steps:,} steps of batch.size {batch_size} x length {length}, more than"
            f" {COUNT.high:,.0f}: lower budget.tokens"
        )
    return steps


def tensor_parallel_size(strategy: Any) -> int:
    """Return how many devices read the same sequences, by `trainer.strategy`: a word, or the settings of one."""
    size = strategy.get("tensor_parallel_size", 1) if isinstance(strategy, Mapping | DictConfig) else 1
    return size if isinstance(size, int) and size > 0 else 1


def micro_size(batch_size: int, accumulate: int, devices: int | str, num_nodes: int, strategy: Any = None) -> int:
    """Return the sequences that one device holds at a time; tensor-parallel ones hold the same."""
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(f"trainer.devices {devices!r} is not a positive number: give the number of devices, such as 1")
    if not isinstance(accumulate, int) or accumulate < 1:
        raise ValueError(f"batch.accumulate {accumulate!r} is not a positive whole number: give one, such as 1")
    shared = tensor_parallel_size(strategy)
    if devices * num_nodes % shared:
        raise ValueError(
            f"trainer.strategy.tensor_parallel_size {shared} does not divide {devices} devices x {num_nodes} nodes:"
            " choose a size that does"
        )
    pieces = accumulate * devices * num_nodes // shared
    if batch_size % pieces:
        alike = f" / {shared} that share a layer" if shared > 1 else ""
        raise ValueError(
            f"batch.size {batch_size} does not divide into batch.accumulate {accumulate} x {devices} devices x"
            f" {num_nodes} nodes{alike}: choose a multiple of {pieces}"
        )
    return batch_size // pieces


def group_name(experiment: str | None) -> str:
    """Return the folder under runs/ of an experiment's runs ("single" without one)."""
    return "single" if experiment in (None, "None", "null", "") else str(experiment)


def fused(precision: str | int | None) -> bool:
    """Return whether the optimizer updates all weights in one pass: always, but where it would get scaled gradients.

    In 16-bit floats the loss is scaled, and torch's fused optimizers undo that in their step, after the clipping.
    """
    return str(precision) not in ("16", "16-mixed")


def path_name(path: str, above: int) -> str:
    """Return the name of a path's last folder (`above` 0), or of the one `above` levels above it; "" at the root."""
    whole = Path(path).absolute()
    return [whole, *whole.parents][above].name


def run_name(overrides: str) -> str:
    """Return a run's folder name from the overrides that make it, such as "family=ar,seed=1"; long ones are cut."""
    name = overrides.replace("/", "-") if overrides else "default"
    if len(name.encode()) <= LONGEST_NAME:
        return name
    mark = "..." + hashlib.sha256(overrides.encode()).hexdigest()[:8]
    return name.encode()[: LONGEST_NAME - len(mark)].decode(errors="ignore") + mark
