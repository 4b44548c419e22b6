"""Reports: finished runs as a terminal table, as JSON, and as one self-contained HTML page. Never imports torch."""

from __future__ import annotations

import json as json_module
from pathlib import Path

from dlmkit.report.compare import equal_budget, seed_groups, warnings_for
from dlmkit.report.page import page
from dlmkit.report.reading import Run, collect
from dlmkit.report.terminal import show

__all__ = ["Run", "collect", "main", "write_html", "write_json"]


def main(paths: list[Path], html: Path | None = None, json: Path | None = None) -> None:
    """Print the table of the runs under `paths` and write the page (by default beside the first of them).

    Raises:
        ValueError: no such folder, or no finished run in it.
    """
    runs = collect(paths)
    html = paths[0] / "report.html" if html is None else html
    write_html(runs, html)
    if json is not None:
        write_json(runs, json)
    show(runs, html, json, paths[0])


def write_html(runs: list[Run], file: Path) -> None:
    """Write the page, whole or not at all."""
    _write(file, page(runs))


def write_json(runs: list[Run], file: Path) -> None:
    """Write summaries, comparisons at equal budgets, groups of seeds and warnings."""
    tables = {
        "runs": [run.summary for run in runs],
        "equal_tokens": equal_budget(runs, "total_tokens"),
        "equal_flops": equal_budget(runs, "total_flops"),
        "seeds": seed_groups(runs),
        "warnings": warnings_for(runs),
    }
    _write(file, json_module.dumps(tables, indent=2) + "\n")


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
