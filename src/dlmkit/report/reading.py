"""From run folders to records."""

from __future__ import annotations

import csv
import difflib
import json
import math
import os
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

SUMMARY = "summary.json"
REQUIRED = ("name", "status")
REQUIRED_WHEN_FINISHED = ("nll_is_exact", "seed")
NUMBERS_WHEN_FINISHED = ("val_nll", "val_nll_stderr", "tokens_seen", "total_tokens", "total_flops")


@dataclass(frozen=True)
class Point:
    """A metric's value at a budget, with its standard error where one was logged."""

    x: float
    y: float
    stderr: float | None = None


@dataclass(frozen=True)
class Run:
    """One run as its folder tells it.

    Attributes:
        folder: where it is.
        label: what it is called in tables and plots; unique among the runs that were collected together.
        summary: summary.json.
        config: config.yaml, flattened to dotted keys.
        curves: column of metrics.csv -> step -> value.
        samples: the last samples file, or an empty dictionary.
    """

    folder: Path
    label: str
    summary: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, dict[int, float]] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.summary["status"] == "finished")

    @property
    def exact(self) -> bool:
        """Whether its NLL is exact, not a bound."""
        return bool(self.summary.get("nll_is_exact"))

    @property
    def val_nll(self) -> float:
        """The final validation's NLL or bound, nats per token; NaN when there is none."""
        value = self.summary.get("val_nll")
        return math.nan if value is None else float(value)

    def against(self, budget: str, metric: str) -> list[Point]:
        """Return `metric` over `budget` ("tokens", "total_tokens" or "total_flops"), sorted by budget.

        The two may stand on different rows of metrics.csv: they are matched by step. A step without a budget gets
        it from its neighbours, since budgets are linear in steps.
        """
        spent = sorted(self.curves.get(budget, {}).items())
        errors = self.curves.get(f"{metric}_stderr", {})
        points = []
        for step, value in sorted(self.curves.get(metric, {}).items()):
            x = _between(spent, step)
            if x is not None and math.isfinite(value):
                points.append(Point(x, value, errors.get(step)))
        return points


def collect(paths: Sequence[Path]) -> list[Run]:
    """Return the runs under `paths`, best first, unfinished ones last.

    Raises:
        ValueError: a path that does not exist, no finished run anywhere, or a file that cannot be read.
    """
    if not paths:
        raise ValueError("no run folder was given: name at least one, for example runs/quickstart")
    folders: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path} is no folder{_nearest(path)}: give a run's folder, or one that holds runs")
        for file in sorted(path.rglob(SUMMARY)):
            folders.setdefault(file.parent.resolve(), file.parent)
    runs = [read(folder) for folder in folders.values()]
    if not any(run.finished for run in runs):
        raise ValueError(_nothing_finished(paths, runs))
    return sorted(_with_labels(runs), key=_rank)


def read(folder: Path) -> Run:
    """Read one run's folder.

    Raises:
        ValueError: one of its files is broken.
    """
    summary = _read_summary(folder / SUMMARY)
    return Run(
        folder=folder,
        label=short_name(str(summary["name"])),
        summary=summary,
        config=_read_config(folder / "config.yaml"),
        curves=_read_curves(folder / "metrics.csv"),
        samples=_read_samples(folder / "samples"),
    )


def short_name(name: str) -> str:
    """Return a run's name without the key when it only names a member of the family."""
    return name.removeprefix("family=")


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one with dotted keys; lists are values."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def parent_of(run: Run, runs: Sequence[Run]) -> Run | None:
    """Return the run that `run` started from, if it is among `runs`."""
    name = run.summary.get("init_from")
    named = [other for other in runs if name is not None and other.summary["name"] == name and other is not run]
    siblings = [other for other in named if other.folder.parent.resolve() == run.folder.parent.resolve()]
    return next(iter(siblings or named), None)


def _rank(run: Run) -> tuple[bool, bool, float, str]:
    diverged = not math.isfinite(run.val_nll)
    return (not run.finished, diverged, 0.0 if diverged else run.val_nll, run.label)


def _with_labels(runs: list[Run]) -> list[Run]:
    """Tell runs of one name apart by the folders above them."""
    named = Counter(run.label for run in runs)
    common = os.path.commonpath([run.folder.resolve() for run in runs])

    def label(run: Run) -> str:
        return run.label if named[run.label] == 1 else os.path.relpath(run.folder.resolve(), common)

    labels = without_what_all_share([label(run) for run in runs])
    return [replace(run, label=label) for run, label in zip(runs, labels, strict=True)]


def without_what_all_share(labels: Sequence[str]) -> list[str]:
    """Return the labels of a sweep without the settings (key=value) that stand in all of them."""
    pieces = [re.split(r",(?![^\[{]*[\]}])", label) for label in labels]  # not at the commas of a list
    shared = {piece for piece in set[str]().union(*pieces) if "=" in piece and all(piece in one for one in pieces)}
    short = [short_name(",".join(piece for piece in one if piece not in shared)) for one in pieces]
    return short if all(short) and len(set(short)) == len(labels) > 1 else list(labels)


def _between(spent: list[tuple[int, float]], step: int) -> float | None:
    place = bisect_left(spent, step, key=lambda item: item[0])
    if place < len(spent) and spent[place][0] == step:
        return spent[place][1]
    if place in (0, len(spent)):
        return None
    (left, low), (right, high) = spent[place - 1], spent[place]
    return low + (high - low) * (step - left) / (right - left)


def _read_summary(file: Path) -> dict[str, Any]:
    summary = _read_json(file, "delete that run's folder or train it again")
    if not isinstance(summary, dict):
        raise ValueError(f"{file} holds no JSON object: it is no dlmkit summary; move that folder away")
    required: tuple[str, ...] = REQUIRED
    if summary.get("status") == "finished":
        required += REQUIRED_WHEN_FINISHED + NUMBERS_WHEN_FINISHED
    missing = [key for key in required if key not in summary]
    if missing:
        raise ValueError(f"{file} lacks {', '.join(missing)}: it is no dlmkit summary; move that folder away")
    if summary["status"] == "finished":
        for key in NUMBERS_WHEN_FINISHED:
            if isinstance(summary[key], bool) or not isinstance(summary[key], (int, float)):
                raise ValueError(f"{file} has {key} {summary[key]!r}, which must be a number: train that run again")
    return summary


def _read_json(file: Path, remedy: str) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON ({error.msg}, line {error.lineno}): {remedy}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {remedy}") from error


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid YAML: delete that run's folder or train it again") from error
    return flatten(config) if isinstance(config, dict) else {}


def _read_curves(file: Path) -> dict[str, dict[int, float]]:
    curves: dict[str, dict[int, float]] = {}
    if not file.is_file():
        return curves
    with file.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream, restkey="")
        for row in reader:
            cells = {column: cell for column, cell in row.items() if cell and column}
            try:
                step = int(float(cells.pop("step", "-1")))
                values = {column: float(cell) for column, cell in cells.items()}
            except ValueError as error:
                raise ValueError(f"{file} line {reader.line_num}: {error}; delete that line") from error
            for column, value in values.items() if step >= 0 else ():
                curves.setdefault(column, {})[step] = value  # a resumed run repeats steps: the last one holds
    return curves


def _read_samples(folder: Path) -> dict[str, Any]:
    records: list[dict[str, Any]] = []
    for file in sorted(folder.glob("*.json")):
        record = _read_json(file, "delete that file")
        if not isinstance(record, dict) or not {"step", "samples"} <= record.keys():
            raise ValueError(f"{file} lacks step or samples: it holds no samples of a run; delete that file")
        records.append(record)
    return max(records, key=lambda record: int(record["step"]), default={})


def _nothing_finished(paths: Sequence[Path], runs: Sequence[Run]) -> str:
    where = ", ".join(map(str, paths))
    others = ", ".join(f"{run.label} is {run.summary['status']}" for run in runs)
    return (
        f"{where} holds no finished run{f' ({others})' if others else ''}: make one, for example with"
        " `dlmkit train experiment=quickstart -m`"
    )


def _nearest(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, n=1)
    return f" (nearest: {path.parent / close[0]})" if close else ""
