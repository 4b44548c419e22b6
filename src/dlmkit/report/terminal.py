"""The table in a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dlmkit.report.compare import equal_budget, seed_groups, warnings_for
from dlmkit.report.reading import Run
from dlmkit.report.words import COLUMNS, NOTE, count, row, sign_of


def show(runs: list[Run], html: Path, json: Path | None, folder: Path) -> None:
    """Print the tables, the warnings, and where everything is."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=180)
    table = Table(title="held-out likelihood", caption=NOTE)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "run" else "right")
    for run in runs:
        if run.finished:
            table.add_row(*row(run))
    console.print(table)
    for budget, title in (("total_tokens", "at equal total tokens"), ("total_flops", "at equal total FLOPs")):
        rows = equal_budget(runs, budget)
        if rows:
            console.print(_budget_table(runs, rows, title))
    for group in seed_groups(runs):
        console.print(
            f"{', '.join(group['runs'])}: {sign_of(group['nll_is_exact'])} {group['val_nll']:.3f} \u00b1"
            f" {group['stderr']:.3f} over {len(group['seeds'])} seeds"
        )
    for message in warnings_for(runs):
        console.print(f"warning: {message}", style="bold yellow")
    console.print(f"report       {html}", soft_wrap=True)
    if json is not None:
        console.print(f"tables       {json}", soft_wrap=True)
    console.print(f"TensorBoard  tensorboard --logdir {folder}", soft_wrap=True)


def _budget_table(runs: list[Run], rows: list[dict[str, Any]], title: str) -> Table:
    finished = [run for run in runs if run.finished]
    table = Table(title=f"validation NLL {title} (nats/token)")
    table.add_column("budget", justify="right")
    for run in finished:
        table.add_column(f"{run.name} {sign_of(run.summary['nll_is_exact'])}", justify="right")
    for entry in rows:
        values = [entry["val_nll"][run.name] for run in finished]
        table.add_row(count(entry["budget"]), *("\u2013" if value is None else f"{value:.3f}" for value in values))
    return table
