"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dlmkit.data.files import digest, find_files, identity
from dlmkit.data.sources.base import Source
from dlmkit.ranges import checked

DAMAGE = (OSError, pa.ArrowException, UnicodeDecodeError)
"""What reading a damaged file raises; an OSError of Arrow's has no error number."""


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn the errors of a damaged file into a line that names it."""
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{str(path)!r} is damaged ({reason}): take another copy of it") from error


class Parquet(Source):
    """Parquet files; a document is one column of a row.

    Args:
        files: a name or glob pattern, or several.
        column: the column that holds the text.
    """

    @checked
    def __init__(self, files: str | Iterable[str], column: str = "text") -> None:
        self._paths = find_files(files)
        self._column = column
        for path in self._paths:
            self._check(path)

    def _check(self, path: Path) -> None:
        with _damage_named(path):
            try:
                schema = pq.read_schema(path)
            except pa.ArrowInvalid as error:
                raise ValueError(
                    f"{str(path)!r} is not a Parquet file: name Parquet files, or use data=text or jsonl"
                ) from error
            names = schema.names
        if self._column not in names:
            raise ValueError(f"{str(path)!r} has no column {self._column!r}: set column to one of {', '.join(names)}")
        kind = schema.field(self._column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise ValueError(f"{str(path)!r}: column {self._column!r} holds {kind}: name a column of text")

    def documents(self) -> Iterator[str]:
        """Yield the column's rows; null counts as an empty document.

        Raises:
            ValueError: a damaged file.
        """
        for path in self._paths:
            with _damage_named(path), pq.ParquetFile(path) as file:
                for batch in file.iter_batches(columns=[self._column], batch_size=1024):
                    for text in batch.column(0).to_pylist():
                        yield text or ""

    @property
    def fingerprint(self) -> str:
        """Hash of the content of the files and of the column."""
        return digest(["parquet", identity(self._paths), self._column])

    def num_documents(self) -> int:
        """Return the number of rows."""
        return sum(pq.read_metadata(path).num_rows for path in self._paths)
