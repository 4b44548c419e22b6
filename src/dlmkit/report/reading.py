"""From run folders to records."""

from __future__ import annotations

import csv
import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

REQUIRED = ("name", "status", "val_nll", "val_nll_stderr", "nll_is_exact", "total_tokens", "total_flops", "seed")


@dataclass(frozen=True)
class Run:
    """One run as its folder tells it.

    Attributes:
        folder: where it is.
        summary: summary.json.
        config: config.yaml, flattened to dotted keys.
        curves: column of metrics.csv -> list of (step, value).
        samples: the last samples file, or an empty dictionary.
    """

    folder: Path
    summary: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's name, without the key when it only names a member of the family."""
        return str(self.summary["name"]).removeprefix("family=")

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.summary["status"] == "finished")

    def against(self, budget: str, metric: str) -> list[tuple[float, float]]:
        """Return (budget, metric) pairs, matched by step; `budget` is "total_tokens" or "total_flops"."""
        spent = dict(self.curves.get(budget, []))
        return [(spent[step], value) for step, value in self.curves.get(metric, []) if step in spent]


def collect(paths: list[Path]) -> list[Run]:
    """Return the runs under `paths`, best first, unfinished ones last.

    Raises:
        ValueError: a path that does not exist, or no finished run anywhere.
    """
    folders: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path} is no folder{_nearest(path)}: give a run's folder, or one that holds runs")
        folders += sorted(file.parent for file in path.rglob("summary.json"))
    runs = [read(folder) for folder in dict.fromkeys(folders)]
    if not any(run.finished for run in runs):
        raise ValueError(
            f"{', '.join(map(str, paths))} holds no finished run: make one, for example with `dlmkit train"
            " experiment=quickstart -m`"
        )
    return sorted(runs, key=lambda run: (not run.finished, run.summary["val_nll"] if run.finished else 0.0, run.name))


def read(folder: Path) -> Run:
    """Read one run's folder."""
    summary = _read_summary(folder / "summary.json")
    config_file = folder / "config.yaml"
    config = yaml.safe_load(config_file.read_text()) if config_file.is_file() else {}
    return Run(
        folder, summary, flatten(config), _read_curves(folder / "metrics.csv"), _read_samples(folder / "samples")
    )


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one with dotted keys."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _read_summary(file: Path) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file} is not valid JSON ({error.msg}): delete that run's folder or train it again"
        ) from error
    missing = [key for key in REQUIRED if key not in summary]
    if missing:
        raise ValueError(f"{file} lacks {', '.join(missing)}: it is no dlmkit summary; move that folder away")
    return summary


def _read_curves(file: Path) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    if not file.is_file():
        return curves
    with file.open(newline="") as stream:
        for row in csv.DictReader(stream):
            for column, cell in row.items():
                if cell and row.get("step"):
                    curves.setdefault(column, []).append((int(float(row["step"])), float(cell)))
    return curves


def _read_samples(folder: Path) -> dict[str, Any]:
    files = sorted(folder.glob("*.json"))
    records: list[dict[str, Any]] = [json.loads(file.read_text()) for file in files]
    return max(records, key=lambda record: record["step"], default={})


def _nearest(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, n=1)
    return f" (nearest: {path.parent / close[0]})" if close else ""
