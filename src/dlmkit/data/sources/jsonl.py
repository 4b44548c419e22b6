"""JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from dlmkit.data.files import digest, find_files, identity
from dlmkit.data.sources.base import Source
from dlmkit.ranges import checked


class JsonLines(Source):
    """Files with one JSON object a line; a document is one field of it.

    Args:
        files: a name or glob pattern, or several.
        field: the field that holds the text.
    """

    @checked
    def __init__(self, files: str | Iterable[str], field: str = "text") -> None:
        self._paths = find_files(files)
        self._field = field

    def documents(self) -> Iterator[str]:
        """Yield the field of each line."""
        for path in self._paths:
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield self._text(line, f"{str(path)!r} line {number}")

    def _text(self, line: bytes, place: str) -> str:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{place} is not JSON ({error}): each line must hold one JSON object") from error
        if not isinstance(row, dict):
            raise ValueError(f"{place} holds a {type(row).__name__}: each line must hold one JSON object")
        if self._field not in row:
            raise ValueError(f"{place} has no field {self._field!r}: set field to one of {', '.join(sorted(row))}")
        text = row[self._field]
        if not isinstance(text, str):
            raise ValueError(f"{place}: field {self._field!r} holds a {type(text).__name__}: name a field of text")
        return text.encode(errors="replace").decode()  # JSON allows lone surrogates, UTF-8 does not

    @property
    def fingerprint(self) -> str:
        """Hash of the content of the files and of the field."""
        return digest(["jsonl", identity(self._paths), self._field])

    def num_documents(self) -> int:
        """Count the lines."""
        return sum(map(_count_lines, self._paths))


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(piece.count(b"\n") for piece in iter(lambda: file.read(2**22), b""))
