"""Comparisons on equal terms: the same tokens, the same FLOPs, the same configuration but for the seed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dlmkit.report.load import Budget, Point, Run, parent_of

SAME_BUDGET = 0.01
"""Budgets closer than this share of one another count as equal: runs end on whole steps."""

NOT_COMPARED = ("run_dir", "dirpath", "if_exists", "cache_dir")
"""Last parts of configuration keys that say where a run is kept, not what it is; so do all keys under logger."""


@dataclass(frozen=True)
class ValueAtBudget:
    """A run's validation NLL at a budget.

    Attributes:
        nll: nats per token.
        stderr: its standard error, if known.
        final: whether it is the run's final validation; otherwise it is interpolated on the curve.
    """

    nll: float
    stderr: float | None
    final: bool


@dataclass(frozen=True)
class AtBudget:
    """A budget, and each run's value there by its label; ``None`` for a run whose curve does not span it."""

    amount: float
    values: dict[str, ValueAtBudget | None]


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ in nothing but the seed."""

    label: str
    runs: tuple[Run, ...]
    mean: float
    stderr: float

    @property
    def exact(self) -> bool:
        """Whether the NLLs are exact."""
        return self.runs[0].exact


def comparable(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that have a result: finished, with a finite NLL."""
    return [run for run in runs if run.finished and math.isfinite(run.val_nll)]


def at_budget(curve: Sequence[Point], budget: float) -> Point | None:
    """Return the curve at `budget`, linear in log budget between two points; ``None`` outside its range."""
    points = sorted(curve, key=lambda point: point.x)
    for point in reversed(points):
        if point.x == budget:
            return point
    for left, right in pairwise(points):
        if 0 < left.x < budget < right.x:
            share = math.log(budget / left.x) / math.log(right.x / left.x)
            return Point(budget, _mix(left.y, right.y, share), _mix_errors(left, right, share))
    return None


def equal_budget(runs: Sequence[Run], budget: Budget) -> list[AtBudget]:
    """Return the comparison at each distinct final budget that at least two runs reached, smallest first.

    Args:
        runs: the runs.
        budget: of tokens or FLOPs, with those of the run that a run started from.
    """
    compared = comparable(runs)
    rows: list[AtBudget] = []
    for amount in sorted({run.spent(budget) for run in compared}):
        if rows and _same(amount, rows[-1].amount):
            continue
        values = {run.label: _value(run, budget, amount) for run in compared}
        if sum(value is not None for value in values.values()) >= 2:
            rows.append(AtBudget(amount, values))
    return rows


def validation_curve(run: Run, budget: Budget) -> list[Point]:
    """Return the run's validation NLL over `budget`; a finished run's curve ends at its final validation."""
    curve = run.against(budget, "val/nll")
    if not run.finished or not math.isfinite(run.val_nll):
        return curve
    end = run.spent(budget)
    final = Point(end, run.val_nll, run.val_nll_stderr)
    return [point for point in curve if point.x < end * (1 - 1e-9)] + [final]


def seed_groups(runs: Sequence[Run]) -> list[SeedGroup]:
    """Return mean and standard error over runs that differ in nothing but the seed: two or more, lowest mean first."""
    groups: dict[str, list[Run]] = {}
    for run in comparable(runs):
        groups.setdefault(identity(run), []).append(run)
    found = [_seed_group(group) for group in groups.values() if len(group) > 1]
    return sorted(found, key=lambda group: group.mean)


def identity(run: Run) -> str:
    """Return the run's configuration as text, without its seed and its paths."""
    if not run.config:
        return _without_seed(run.summary.name)
    kept = {key: value for key, value in run.config.items() if _is_compared(key) and key.rpartition(".")[2] != "seed"}
    return repr(sorted((key, _without_seed(repr(value))) for key, value in kept.items()))


def differences(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """Return (key, value per run) for the configuration keys in which the runs differ; ``None`` where one is absent."""
    rows = []
    for key in sorted({key for run in runs for key in run.config}):
        values = [run.config.get(key) for run in runs]
        if len({repr(value) for value in values}) > 1 and _is_compared(key):
            rows.append((key, values))
    return rows


def _is_compared(key: str) -> bool:
    return key.partition(".")[0] != "logger" and key.rpartition(".")[2] not in NOT_COMPARED


def warnings_for(runs: Sequence[Run]) -> list[str]:
    """Return the reasons against comparing these runs, the most serious first."""
    compared = comparable(runs)
    messages = [*_data_warnings(compared), *_grid_warnings(compared), *_precision_warnings(compared)]
    messages += _subset_warnings(compared)
    messages += [
        f"{run.label} finished with an NLL that is no finite number: it diverged and is left out of the comparisons."
        for run in runs
        if run.finished and not math.isfinite(run.val_nll)
    ]
    messages += [
        f"{run.label} is {run.state}, not finished: its curve is shown, dashed, and it is not compared."
        for run in runs
        if not run.finished
    ]
    messages += [
        f"{run.label} started from {run.summary.init_from}, which is not in this report: its budget counts that"
        " run, its curve begins after it."
        for run in compared
        if run.summary.init_from is not None and parent_of(run, runs) is None
    ]
    return messages + [f"{line}; it is left out." for run in runs for line in run.damaged]


def _data_warnings(runs: Sequence[Run]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for run in runs:
        groups.setdefault(run.summary.data_fingerprint, []).append(run.label)
    if len(groups) < 2:
        return []
    who = "; ".join(f"{fingerprint}: {_some(labels)}" for fingerprint, labels in groups.items())
    return [f"These rows are NOT comparable: the runs used different data (data_fingerprint {who})."]


def _grid_warnings(runs: Sequence[Run]) -> list[str]:
    grids: dict[Any, list[str]] = {}
    for run in runs:
        if not run.exact:
            grids.setdefault(run.summary.val_t_grid, []).append(run.label)
    messages = []
    if len(grids) > 1:
        who = "; ".join(f"{grid}: {_some(labels)}" for grid, labels in grids.items())
        messages.append(f"The bounds were estimated at different numbers of times t per sequence (val_t_grid {who}).")
    scored: dict[Any, list[str]] = {}
    for run in runs:
        scored.setdefault(run.summary.val_tokens, []).append(run.label)
    if len(scored) > 1:
        who = "; ".join(f"{tokens}: {_some(labels)}" for tokens, labels in scored.items())
        messages.append(f"The runs were scored on different numbers of validation tokens ({who}).")
    return messages


def _precision_warnings(runs: Sequence[Run]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for run in runs:
        if run.summary.precision is not None:  # records of the first releases do not say
            groups.setdefault(run.summary.precision, []).append(run.label)
    if len(groups) < 2:
        return []
    who = "; ".join(f"{precision}: {_some(labels)}" for precision, labels in groups.items())
    return [f"The runs were trained in different precisions, which moves their speed and, a little, their NLL ({who})."]


def _subset_warnings(runs: Sequence[Run]) -> list[str]:
    partial = []
    for run in runs:
        during = set(run.curves.get("val/tokens", {}).values()) - {run.summary.val_tokens}
        if during:
            partial.append(f"{run.label} {min(during):,.0f} of {run.summary.val_tokens:,}")
    if not partial:
        return []
    return [
        "During training these runs were validated on part of the tokens of the final validation, so their curves can"
        f" jump at the end ({_some(partial)})."
    ]


def _some(labels: Sequence[str], most: int = 4) -> str:
    if len(labels) > most:
        return f"{', '.join(labels[:most])} and {len(labels) - most} more"
    return ", ".join(labels)


def _value(run: Run, budget: Budget, amount: float) -> ValueAtBudget | None:
    if _same(run.spent(budget), amount):
        return ValueAtBudget(run.val_nll, run.val_nll_stderr, final=True)
    point = at_budget(validation_curve(run, budget), amount)
    return None if point is None else ValueAtBudget(point.y, point.stderr, final=False)


def _same(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=SAME_BUDGET)


def _mix(low: float, high: float, share: float) -> float:
    return low + share * (high - low)


def _mix_errors(left: Point, right: Point, share: float) -> float | None:
    # Not in quadrature: both points were estimated on the same sequences, so their errors are correlated.
    return None if left.stderr is None or right.stderr is None else _mix(left.stderr, right.stderr, share)


def _seed_group(runs: list[Run]) -> SeedGroup:
    values = [run.val_nll for run in runs]
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    label = re.sub(r",?\bseed=\d+", "", runs[0].label).strip(",/") or "all"
    return SeedGroup(label, tuple(runs), mean, math.sqrt(variance / len(values)))


def _without_seed(text: str) -> str:
    return re.sub(r"\bseed=\d+", "seed=*", text)
