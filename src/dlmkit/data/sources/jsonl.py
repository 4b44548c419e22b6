"""JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

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
        """Yield the field of each line; null counts as an empty document."""
        return (text for (text,) in self.rows(self._field))

    def rows(self, *fields: str) -> Iterator[tuple[str, ...]]:
        """Yield several fields of each line; null counts as an empty text.

        Raises:
            ValueError: a line that is not one JSON object with text in these fields.
        """
        for path in self._paths:
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        place = f"{str(path)!r} line {number}"
                        row = parse_object(line, place)
                        yield tuple(_text(row, field, place) for field in fields)

    @property
    def fingerprint(self) -> str:
        """Hash of the content of the files and of the field."""
        return digest(["jsonl", identity(self._paths), self._field])

    def num_documents(self) -> int:
        """Count the lines."""
        return sum(map(_count_lines, self._paths))


def parse_object(line: bytes, place: str) -> dict[str, Any]:
    """Return the JSON object of a line.

    Raises:
        ValueError: it holds none; the message begins with `place`.
    """
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError(f"{place} is nested too deeply: each line must hold one plain JSON object") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not UTF-8 ({error.reason}): convert it, for example with iconv") from error
    except ValueError as error:
        raise ValueError(f"{place} is not JSON ({error}): each line must hold one JSON object") from error
    if not isinstance(row, dict):
        raise ValueError(f"{place} holds a {type(row).__name__}: each line must hold one JSON object")
    return row


def _text(row: dict[str, Any], field: str, place: str) -> str:
    if field not in row:
        raise ValueError(f"{place} has no field {field!r}: set field to one of {', '.join(sorted(row)[:20])}")
    text = row[field]
    if not isinstance(text, str | None):
        raise ValueError(
            f"{place}: field {field!r} holds a {type(text).__name__}: name a field of text, or leave the line out"
        )
    return (text or "").encode(errors="replace").decode()  # JSON allows lone surrogates, UTF-8 does not


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(piece.count(b"\n") for piece in iter(lambda: file.read(2**22), b""))
