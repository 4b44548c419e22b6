"""The page and the JSON tables as files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlmkit.files import write_json, write_text
from dlmkit.report.compare import AtBudget, equal_budget, seed_groups, warnings_for
from dlmkit.report.load import Run
from dlmkit.report.page import page


def write_html(runs: Sequence[Run], file: Path) -> None:
    """Write the page in one step; a link stays, and what it names is replaced."""
    write_text(file.resolve(), page(runs))


def write_tables(runs: Sequence[Run], file: Path) -> None:
    """Write summaries, comparisons at equal budgets, groups of seeds and warnings as JSON.

    The runs' `label` is their name in the other tables. Numbers that JSON has no form for (NaN) become null.
    """
    tables = {
        "runs": [{"label": run.label, "folder": str(run.folder), **run.summary.to_dict()} for run in runs],
        "equal_tokens": [_budget(at) for at in equal_budget(runs, "total_tokens")],
        "equal_flops": [_budget(at) for at in equal_budget(runs, "total_flops")],
        "seeds": [
            {
                "label": group.label,
                "runs": [run.label for run in group.runs],
                "seeds": [run.summary.seed for run in group.runs],
                "val_nll": group.mean,
                "val_nll_stderr": group.stderr,
                "nll_is_exact": group.exact,
            }
            for group in seed_groups(runs)
        ],
        "warnings": warnings_for(runs),
    }
    write_json(file.resolve(), _finite(tables), allow_nan=False)


def _budget(at: AtBudget) -> dict[str, Any]:
    """Return one row: budget, and per run its NLL there, its standard error, and whether it is the final one."""
    known = {label: value for label, value in at.values.items() if value is not None}
    return {
        "budget": at.amount,
        "val_nll": {label: None if value is None else value.nll for label, value in at.values.items()},
        "val_nll_stderr": {label: value.stderr for label, value in known.items()},
        "final": {label: value.final for label, value in known.items()},
    }


def _finite(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node
