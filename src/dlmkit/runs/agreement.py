"""Whether a run may go on under given settings: what decides its result must be what it was begun with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAY_CHANGE = (
    "backbone.gradient_checkpointing",
    "batch.accumulate",
    "batch.micro_size",
    "batch.num_workers",
    "compile",
    "data.cache_dir",
    "if_exists",
    "logger",
    "optimizer.fused",
    "run_dir",
    "trainer.accelerator",
    "trainer.detect_anomaly",
    "trainer.devices",
    "trainer.log_every_n_steps",
    "trainer.num_nodes",
    "trainer.strategy",
    "validation.at_start",
    "validation.every_steps",
    "vocab",
)
"""Keys, or sections, that say where and how a run is made and logged. `vocab` follows from the data."""

OBSERVERS = (
    "dlmkit.callbacks.exact_match.ExactMatch",
    "dlmkit.callbacks.samples.SampleLogger",
    "dlmkit.callbacks.throughput.Throughput",
    "lightning.pytorch.callbacks.DeviceStatsMonitor",
    "lightning.pytorch.callbacks.LearningRateMonitor",
    "lightning.pytorch.callbacks.ModelCheckpoint",
)
"""Callbacks that log and save, and change nothing of the training."""

KNOWN_PACKAGES = ("dlmkit.", "lightning.")
STEPS = ("budget.tokens", "num_steps", "lr_schedule.num_steps")
"""Keys that say how long a run trains."""
ABSENT = "absent"
MOST_NAMED = 6  # keys in a message


@dataclass(frozen=True)
class Changes:
    """What a run's settings and the present ones differ in: dotted key -> (old, new).

    Attributes:
        refused: settings that decide the result.
        unknown: settings of callbacks from other packages, of which only their author knows what they decide.
    """

    refused: dict[str, tuple[Any, Any]]
    unknown: dict[str, tuple[Any, Any]]

    def check(self, run_dir: Path) -> None:
        """Check that a run can go on.

        Raises:
            ValueError: a setting that decides its result has changed; keys, old and new values are named.
        """
        if self.refused:
            raise ValueError(
                f"{run_dir} was begun with other settings: {_listed(self.refused)}; give the same ones, since they"
                " decide its result, or set if_exists=overwrite to start over"
            )

    @property
    def only_steps(self) -> bool:
        """Whether nothing has changed but how long the run trains."""
        return all(key in STEPS for key in self.refused)

    @property
    def warning(self) -> str | None:
        """One line on the settings of which nobody knows whether they decide the result, or ``None``."""
        names = sorted({".".join(key.split(".")[:2]) for key in self.unknown})
        return f"continues with other settings of {', '.join(names)} than it was begun with" if names else None


def compare(recorded: Mapping[str, Any], current: Mapping[str, Any], derived: Collection[str]) -> Changes:
    """Return what differs between the settings of a run and those of now.

    Args:
        recorded: dotted keys and values of the run's config.yaml, as they were at its start.
        current: those of now.
        derived: keys or sections of `current` that follow from others; they are left out where others are named.
    """
    keys = sorted(recorded.keys() | current.keys())
    pairs = {key: (recorded.get(key, ABSENT), current.get(key, ABSENT)) for key in keys if not _is_free(key)}
    differing = {key: pair for key, pair in pairs.items() if not _equal(*pair)}
    refused: dict[str, tuple[Any, Any]] = {}
    unknown: dict[str, tuple[Any, Any]] = {}
    for key, pair in differing.items():
        targets = _callbacks(key, recorded) | _callbacks(key, current)
        if targets and targets <= set(OBSERVERS):
            continue
        is_known = not targets or any(target.startswith(KNOWN_PACKAGES) for target in targets)
        (refused if is_known else unknown)[key] = pair
    return Changes(_without_derived(refused, derived), unknown)


def _is_free(key: str) -> bool:
    """Return whether a key may change; "callbacks" alone is a run without any."""
    return key == "callbacks" or _is_under(key, MAY_CHANGE)


def _is_under(key: str, sections: Collection[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _callbacks(key: str, settings: Mapping[str, Any]) -> set[str]:
    """Return the class, by its import path, of the callback that a key belongs to: none or one."""
    section, _, rest = key.partition(".")
    if section != "callbacks":
        return set()
    target = settings.get(f"callbacks.{rest.partition('.')[0]}._target_")
    return set() if target is None else {str(target)}


def _equal(old: Any, new: Any) -> bool:
    if (old, new) in ((ABSENT, None), (None, ABSENT)):  # a setting that came later, and is not used
        return True
    return bool(old == new) or repr(old) == repr(new)  # not-a-number differs from itself


def _without_derived(changes: dict[str, tuple[Any, Any]], derived: Collection[str]) -> dict[str, tuple[Any, Any]]:
    typed = {key: pair for key, pair in changes.items() if not _is_under(key, derived)}
    return typed or changes


def _listed(changes: Mapping[str, tuple[Any, Any]]) -> str:
    named = [f"{key} {_shown(old)} -> {_shown(new)}" for key, (old, new) in list(changes.items())[:MOST_NAMED]]
    more = len(changes) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
