"""Comparisons on equal terms: the same tokens, the same FLOPs, the same configuration but for the seed."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from dlmkit.report.reading import Run

SAME_BUDGET = 0.01
"""Budgets closer than this share of one another count as equal: runs end on whole steps."""

IGNORED_DIFFERENCES = ("run_dir", "seed", "if_exists")


def at_budget(curve: list[tuple[float, float]], budget: float) -> float | None:
    """Return the curve's value at `budget`, linear in log budget between two points; ``None`` outside its range."""
    points = sorted(curve)
    for (left, low), (right, high) in pairwise(points):
        if left <= budget <= right:
            share = math.log(budget / left) / math.log(right / left) if right > left else 1.0
            return low + share * (high - low)
    return points[0][1] if len(points) == 1 and points[0][0] == budget else None


def equal_budget(runs: list[Run], budget: str) -> list[dict[str, Any]]:
    """Return one row per distinct final budget that at least two runs reached: the validation NLL of each run there.

    Args:
        runs: the runs.
        budget: "total_tokens" or "total_flops", which count the run that a run started from.
    """
    finished = [run for run in runs if run.finished]
    rows: list[dict[str, Any]] = []
    for value in sorted({float(run.summary[budget]) for run in finished}):
        if rows and _same(value, rows[-1]["budget"]):
            continue
        values = {run.name: _value_at(run, budget, value) for run in finished}
        if sum(result is not None for result in values.values()) >= 2:
            rows.append({"budget": value, "val_nll": values})
    return rows


def _same(left: float, right: float) -> bool:
    """Whether two budgets are the same but for whole steps."""
    return math.isclose(left, right, rel_tol=SAME_BUDGET)


def _value_at(run: Run, budget: str, value: float) -> float | None:
    if _same(float(run.summary[budget]), value):
        return float(run.summary["val_nll"])  # the final validation, over every token
    return at_budget(run.against(budget, "val/nll"), value)


def seed_groups(runs: list[Run]) -> list[dict[str, Any]]:
    """Return mean and standard error over runs that differ in nothing but the seed, for groups of two or more."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.finished:
            groups.setdefault(_without_seed(run), []).append(run)
    rows = []
    for group in groups.values():
        if len(group) < 2:
            continue
        values = [float(run.summary["val_nll"]) for run in group]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
        rows.append(
            {
                "runs": [run.name for run in group],
                "seeds": [run.summary["seed"] for run in group],
                "val_nll": mean,
                "stderr": math.sqrt(variance / len(values)),
                "nll_is_exact": group[0].summary["nll_is_exact"],
            }
        )
    return rows


def _without_seed(run: Run) -> str:
    kept = {
        key: value
        for key, value in run.config.items()
        if key not in IGNORED_DIFFERENCES and not key.endswith((".seed", ".dirpath"))
    }
    return repr(sorted(kept.items(), key=lambda item: item[0]))


def differences(runs: list[Run]) -> list[tuple[str, list[Any]]]:
    """Return (key, value per run) for the configuration keys in which the runs differ."""
    keys = sorted({key for run in runs for key in run.config})
    rows = []
    for key in keys:
        values = [run.config.get(key) for run in runs]
        if len({repr(value) for value in values}) > 1 and not key.endswith(("run_dir", "dirpath")):
            rows.append((key, values))
    return rows


def warnings_for(runs: list[Run]) -> list[str]:
    """Return what stands against comparing these runs."""
    messages = []
    finished = [run for run in runs if run.finished]
    if len({run.summary.get("data_fingerprint") for run in finished}) > 1:
        messages.append(
            "The runs were validated on different data (data_fingerprint differs): do not compare the rows."
        )
    grids = {run.summary.get("val_t_grid") for run in finished if not run.summary["nll_is_exact"]}
    if len(grids) > 1:
        messages.append(f"The bounds were estimated on time grids of different size ({', '.join(map(str, grids))}).")
    messages += [f"{run.name} is {run.summary['status']}, not finished." for run in runs if not run.finished]
    return messages
