"""Reading run folders."""

from __future__ import annotations

import csv
import math
import os
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from dlmkit.nested import flatten
from dlmkit.notices import notice
from dlmkit.runs import CONFIG, METRICS, REPLACED, SUMMARY, RunSummary, is_abandoned
from dlmkit.runs.summary import read_json
from dlmkit.text_hints import nearest

Budget = Literal["total_tokens", "total_flops"]
"""What runs are compared at: fields of the summary, and columns of metrics.csv."""


@dataclass(frozen=True)
class Point:
    """A metric's value at a budget, with its standard error where one was logged."""

    x: float
    y: float
    stderr: float | None = None


@dataclass(frozen=True)
class Run:
    """One run, as its folder has it.

    Attributes:
        folder: its path.
        label: its name in tables and plots; unique among the runs that were collected together.
        summary: its record.
        config: config.yaml, flattened to dotted keys.
        curves: column of metrics.csv -> step -> value.
        samples: the last samples file, or an empty dictionary.
        damaged: a line on each file that cannot be read, and is left out.
    """

    folder: Path
    label: str
    summary: RunSummary
    config: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, dict[int, float]] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the run trained to its end and was validated."""
        return self.summary.finished

    @property
    def state(self) -> str:
        """What became of the run, with the reason where there is one."""
        return self.summary.status + (f" ({self.summary.error})" if self.summary.error else "")

    @property
    def exact(self) -> bool:
        """Whether its NLL is exact, not a bound."""
        return self.summary.nll_is_exact

    @property
    def val_nll(self) -> float:
        """The final validation's NLL or bound, nats per token; NaN when there is none."""
        return math.nan if self.summary.val_nll is None else self.summary.val_nll

    @property
    def val_nll_stderr(self) -> float:
        """Its standard error; NaN when there is none."""
        return math.nan if self.summary.val_nll_stderr is None else self.summary.val_nll_stderr

    def spent(self, budget: Budget) -> float:
        """Return the run's whole budget."""
        return float(self.summary.total_tokens) if budget == "total_tokens" else self.summary.total_flops

    def against(self, budget: str, metric: str) -> list[Point]:
        """Return `metric` over `budget` (columns of metrics.csv), sorted by budget.

        The two may stand on different rows: they are matched by step. The budget of a step without one is interpolated
        linearly between its neighbours.
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
    """Return the runs under `paths`, best first, unfinished ones last; a damaged record costs no other run.

    Raises:
        ValueError: a path that does not exist, or no finished run anywhere.
    """
    if not paths:
        raise ValueError("no run folder was given: name at least one, for example runs/quickstart")
    folders: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path} is no folder{_nearest_folder(path)}: give a run's folder, or one that holds runs")
        for file in sorted(path.rglob(SUMMARY)):
            if REPLACED not in file.parts:
                folders.setdefault(file.parent.resolve(), file.parent)
    runs, damaged = [], []
    for folder in folders.values():
        try:
            runs.append(read(folder))
        except ValueError as error:
            damaged.append(str(error))
    if not any(run.finished for run in runs):
        raise ValueError("; ".join(damaged) or _nothing_finished(paths, runs))
    for line in damaged:
        notice(f"{line}; that run is left out")
    return sorted(_with_labels(runs), key=_rank)


def read(folder: Path) -> Run:
    """Read one run's folder; of its files only the record must be whole.

    Raises:
        ValueError: it has no record, or a damaged one.
    """
    summary = RunSummary.read(folder)
    if summary is None:
        raise ValueError(f"{folder} has no {SUMMARY}, so it is no run's folder: name another one")
    if summary.status == "running" and is_abandoned(folder):
        summary = replace(summary, status="interrupted", error="its process was killed")
    damaged: list[str] = []

    def or_nothing(reader: Callable[[Path], dict[str, Any]], file: Path) -> dict[str, Any]:
        try:
            return reader(file)
        except ValueError as error:
            damaged.append(str(error))
            return {}

    return Run(
        folder=folder,
        label=short_name(summary.name),
        summary=summary,
        config=or_nothing(_read_config, folder / CONFIG),
        curves=or_nothing(_read_curves, folder / METRICS),
        samples=or_nothing(_read_samples, folder / "samples"),
        damaged=tuple(damaged),
    )


def short_name(name: str) -> str:
    """Return a run's name without the key when it only names a member of the family."""
    return name.removeprefix("family=")


def parent_of(run: Run, runs: Sequence[Run]) -> Run | None:
    """Return the run that `run` started from, if it is among `runs`."""
    name = run.summary.init_from
    named = [other for other in runs if name is not None and other.summary.name == name and other is not run]
    siblings = [other for other in named if other.folder.parent.resolve() == run.folder.parent.resolve()]
    return next(iter(siblings or named), None)


def _rank(run: Run) -> tuple[bool, bool, float, str]:
    diverged = not math.isfinite(run.val_nll)
    return (not run.finished, diverged, 0.0 if diverged else run.val_nll, run.label)


def _with_labels(runs: list[Run]) -> list[Run]:
    """Give runs of one name different labels, by the folders above them."""
    named = Counter(run.label for run in runs)
    common = os.path.commonpath([run.folder.resolve() for run in runs])

    def label(run: Run) -> str:
        return run.label if named[run.label] == 1 else os.path.relpath(run.folder.resolve(), common)

    labels = without_shared_settings([label(run) for run in runs])
    return [replace(run, label=label) for run, label in zip(runs, labels, strict=True)]


def without_shared_settings(labels: Sequence[str]) -> list[str]:
    """Return the labels of a sweep without the settings (key=value) that all of them have."""
    pieces = [re.split(r",(?![^\[{]*[\]}])", label) for label in labels]  # not at the commas of a list
    shared = {piece for piece in set[str]().union(*pieces) if "=" in piece and all(piece in one for one in pieces)}
    short = [short_name(",".join(piece for piece in one if piece not in shared)) for one in pieces]
    return short if all(short) and len(set(short)) == len(labels) > 1 else list(labels)


def _between(spent: list[tuple[int, float]], step: int) -> float | None:
    index = bisect_left(spent, step, key=lambda item: item[0])
    if index < len(spent) and spent[index][0] == step:
        return spent[index][1]
    if index in (0, len(spent)):
        return None
    (left, low), (right, high) = spent[index - 1], spent[index]
    return low + (high - low) * (step - left) / (right - left)


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid YAML: take another copy, or delete that file") from error
    return flatten(config) if isinstance(config, dict) else {}


def _read_curves(file: Path) -> dict[str, dict[int, float]]:
    curves: dict[str, dict[int, float]] = {}
    if not file.is_file():
        return curves
    with file.open(newline="", encoding="utf-8", errors="replace") as stream:
        reader = csv.DictReader(stream, restkey="")
        if "step" not in (reader.fieldnames or ["step"]):
            raise ValueError(f"{file} has no column step, so it is no table of a run's curves: delete it")
        for row in reader:
            cells = {column: cell for column, cell in row.items() if cell and column}
            try:
                step = int(float(cells.pop("step", "-1")))
                values = {column: float(cell) for column, cell in cells.items()}
            except ValueError as error:
                raise ValueError(f"{file} line {reader.line_num}: {error}; delete that line") from error
            for column, value in values.items() if step >= 0 else ():
                curves.setdefault(column, {})[step] = value  # a resumed run repeats steps: the last one counts
    return curves


def _read_samples(folder: Path) -> dict[str, Any]:
    records: list[dict[str, Any]] = []
    for file in sorted(folder.glob("*.json")):
        record = read_json(file, "delete that file")
        if not isinstance(record, dict) or not {"step", "samples"} <= record.keys():
            raise ValueError(f"{file} lacks step or samples: it holds no samples of a run; delete that file")
        if not isinstance(record["step"], int) or not _are_samples(record["samples"]):
            raise ValueError(f"{file} has step or samples of another form than a run writes; delete that file")
        records.append(record)
    return max(records, key=lambda record: int(record["step"]), default={})


def _are_samples(node: Any) -> bool:
    return isinstance(node, list) and all(isinstance(sample, dict) and "text" in sample for sample in node)


def _nothing_finished(paths: Sequence[Path], runs: Sequence[Run]) -> str:
    where = ", ".join(map(str, paths))
    others = ", ".join(f"{run.label} is {run.state}" for run in runs)
    return (
        f"{where} holds no finished run{f' ({others})' if others else ''}: make one, for example with"
        " `dlmkit train experiment=quickstart -m`"
    )


def _nearest_folder(path: Path) -> str:
    beside = [entry for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    return nearest(str(path), map(str, beside))
