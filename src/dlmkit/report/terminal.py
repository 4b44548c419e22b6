"""The tables in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from dlmkit.report.compare import warnings_for
from dlmkit.report.reading import Run
from dlmkit.report.tables import BOUNDS_NOTE, Table, budget_tables, run_table, seed_table

WIDTH_OF_A_FILE = 200
FRAME = 3
"""Letters that a column's border and padding take."""
WIDEST_NAME = 40


def render_terminal(runs: Sequence[Run], console: Console | None = None) -> None:
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


def render_places(html: Path, json: Path | None, folder: Path) -> None:
    """Print where everything is."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(f"report       {html}"))
    if json is not None:
        console.print(Text(f"tables       {json}"))
    console.print(Text(f"TensorBoard  tensorboard --logdir {folder}"))


def _print(console: Console, table: Table) -> None:
    console.print(Text(table.title, style="bold"))
    for places in _parts(table, console.width):
        console.print(_rich(table, places))
    if table.note:
        console.print(Text(table.note, style="dim"))


def _parts(table: Table, width: int) -> list[list[int]]:
    """Share the columns out over as many tables as the width asks for; each begins with the name of the row."""
    cells = [[column, *(row[place].text for row in table.rows)] for place, column in enumerate(table.columns)]
    widths = [max(map(len, column)) + FRAME for column in cells]
    first = min(widths[0], WIDEST_NAME + FRAME)
    parts: list[list[int]] = [[0]]
    used = first + 1
    for place in range(1, len(widths)):
        if used + widths[place] > width and len(parts[-1]) > 1:
            parts.append([0])
            used = first + 1
        parts[-1].append(place)
        used += widths[place]
    return parts


def _rich(table: Table, places: Sequence[int]) -> RichTable:
    shown = RichTable()
    for place in places:
        name = place == 0
        shown.add_column(
            Text(table.columns[place]),
            justify="left" if name else "right",
            max_width=WIDEST_NAME if name else None,
            overflow="fold",
        )
    for row in table.rows:
        shown.add_row(*(Text(row[place].text) for place in places))
    return shown
