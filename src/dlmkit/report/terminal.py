"""The tables in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from dlmkit.report.compare import warnings_for
from dlmkit.report.load import Run
from dlmkit.report.tables import BOUNDS_NOTE, Table, budget_tables, run_table, seed_table

WIDTH_OF_A_FILE = 200
FRAME = 3
"""Letters that a column's border and padding take."""
WIDEST_NAME = 40


def print_tables(runs: Sequence[Run], console: Console | None = None) -> None:
    """Print the tables and the warnings."""
    console = Console(highlight=False) if console is None else console
    if not console.is_terminal:
        console.width = max(console.width, WIDTH_OF_A_FILE)
    for message in warnings_for(runs):
        console.print(Text(f"warning: {message}", style="bold yellow"))
    _print(console, run_table(runs))
    for table in (*budget_tables(runs), seed_table(runs)):
        if table is not None:
            _print(console, table)
    console.print(Text(BOUNDS_NOTE, style="italic"))


def print_paths(html: Path, json: Path | None, folder: Path) -> None:
    """Print the paths of what was written."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(f"report       {html}"))
    if json is not None:
        console.print(Text(f"tables       {json}"))
    console.print(Text(f"TensorBoard  tensorboard --logdir {folder}"))


def _print(console: Console, table: Table) -> None:
    console.print(Text(table.title, style="bold"))
    for columns in _column_groups(table, console.width):
        console.print(_rich(table, columns))
    if table.note:
        console.print(Text(table.note, style="dim"))


def _column_groups(table: Table, width: int) -> list[list[int]]:
    """Split the columns over as many tables as fit into `width`; each begins with the name of the row."""
    cells = [[name, *(row[column].text for row in table.rows)] for column, name in enumerate(table.columns)]
    widths = [max(map(len, texts)) + FRAME for texts in cells]
    first = min(widths[0], WIDEST_NAME + FRAME)
    groups: list[list[int]] = [[0]]
    used = first + 1
    for column in range(1, len(widths)):
        if used + widths[column] > width and len(groups[-1]) > 1:
            groups.append([0])
            used = first + 1
        groups[-1].append(column)
        used += widths[column]
    return groups


def _rich(table: Table, columns: Sequence[int]) -> RichTable:
    shown = RichTable()
    for column in columns:
        is_name = column == 0
        shown.add_column(
            Text(table.columns[column]),
            justify="left" if is_name else "right",
            max_width=WIDEST_NAME if is_name else None,
            overflow="fold",
        )
    for row in table.rows:
        shown.add_row(*(Text(row[column].text) for column in columns))
    return shown
