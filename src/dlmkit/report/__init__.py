"""Reports: finished runs as terminal tables, as JSON, and as one self-contained HTML page. Never imports torch.

`collect` reads run folders; `render_terminal`, `write_html` and `write_json` show what it returns. `tables` holds the
rows that the terminal and the page share, `compare` the comparisons on equal terms, `plots` the SVG.
"""

from __future__ import annotations

import json as json_module
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlmkit.report.compare import Budget, equal_budget, seed_groups, warnings_for
from dlmkit.report.page import page
from dlmkit.report.reading import Run, collect
from dlmkit.report.tables import Cell, Table, budget_tables, run_table, seed_table
from dlmkit.report.terminal import render_places, render_terminal

__all__ = [
    "Cell",
    "Run",
    "Table",
    "budget_tables",
    "collect",
    "main",
    "render_terminal",
    "run_table",
    "seed_table",
    "write_html",
    "write_json",
]


def main(paths: Sequence[Path], html: Path | None = None, json: Path | None = None) -> None:
    """Print the tables of the runs under `paths` and write the page (by default into the first folder).

    Raises:
        ValueError: no such folder, no finished run in it, a broken file, or a place that cannot be written to.
    """
    runs = collect(paths)
    html = paths[0] / "report.html" if html is None else html
    for file in (html, json):
        if file is not None and file.is_dir():
            raise ValueError(f"{file} is a folder: name a file in it, such as {file / 'report.html'}")
    write_html(runs, html)
    if json is not None:
        write_json(runs, json)
    render_terminal(runs)
    render_places(html, json, paths[0])


def write_html(runs: Sequence[Run], file: Path) -> None:
    """Write the page, whole or not at all."""
    _write(file, page(runs))


def write_json(runs: Sequence[Run], file: Path) -> None:
    """Write summaries, comparisons at equal budgets, groups of seeds and warnings.

    The runs' `label` is what the other tables call them. Numbers that JSON does not know (NaN) become null.
    """
    tables = {
        "runs": [{"label": run.label, "folder": str(run.folder), **run.summary} for run in runs],
        "equal_tokens": [_budget(at) for at in equal_budget(runs, "total_tokens")],
        "equal_flops": [_budget(at) for at in equal_budget(runs, "total_flops")],
        "seeds": [
            {
                "label": group.label,
                "runs": [run.label for run in group.runs],
                "seeds": [run.summary["seed"] for run in group.runs],
                "val_nll": group.mean,
                "val_nll_stderr": group.stderr,
                "nll_is_exact": group.exact,
            }
            for group in seed_groups(runs)
        ],
        "warnings": warnings_for(runs),
    }
    _write(file, json_module.dumps(_finite(tables), indent=2, allow_nan=False) + "\n")


def _budget(at: Budget) -> dict[str, Any]:
    """One row: budget, and per run its NLL there, that value's standard error, and whether it is the final one."""
    known = {label: reading for label, reading in at.readings.items() if reading is not None}
    return {
        "budget": at.amount,
        "val_nll": {label: None if reading is None else reading.nll for label, reading in at.readings.items()},
        "val_nll_stderr": {label: reading.stderr for label, reading in known.items()},
        "final": {label: reading.final for label, reading in known.items()},
    }


def _finite(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
