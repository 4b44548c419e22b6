"""`dlmkit report`: tables and a page of finished runs. Never imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dlmkit.report.load import collect
from dlmkit.report.terminal import print_paths, print_tables
from dlmkit.report.write import write_html, write_tables


def main(paths: Sequence[Path], html: Path | None = None, json: Path | None = None) -> None:
    """Print the tables of the runs under `paths` and write the page (by default into the first folder).

    Raises:
        ValueError: no such folder, no finished run in it, a damaged file, or a path that cannot be written to.
    """
    runs = collect(paths)
    html = paths[0] / "report.html" if html is None else html
    for file in (html, json):
        if file is not None and file.is_dir():
            raise ValueError(f"{file} is a folder: name a file in it, such as {file / 'report.html'}")
    write_html(runs, html)
    if json is not None:
        write_tables(runs, json)
    print_tables(runs)
    print_paths(html, json, paths[0])
