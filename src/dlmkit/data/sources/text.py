"""Plain text files."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from dlmkit.data.files import digest, find_files, identity
from dlmkit.data.sources.base import Source
from dlmkit.ranges import checked

_PIECE = 2**22  # characters read at a time


class Text(Source):
    r"""UTF-8 text files; a document is a file, or the text between separators.

    Args:
        files: a name or glob pattern, or several.
        separator: text between documents; ``\n`` and ``\t`` stand for newline and tab, so that an empty line can be
            given on a command line as ``'\n\n'``; ``None``: each file is one document.
    """

    @checked
    def __init__(self, files: str | Iterable[str], separator: str | None = None) -> None:
        if separator == "":
            raise ValueError("separator is empty: use null for one document per file, or the text between documents")
        self._paths = find_files(files)
        if separator is None and len(self._paths) == 1:
            self.single_document_remedy = (
                r"set data.source.separator to the text between documents, such as '\n\n' for an empty line"
            )
        self._separator = None if separator is None else separator.replace(r"\n", "\n").replace(r"\t", "\t")

    def documents(self) -> Iterator[str]:
        """Yield the documents; those between separators without empty ones and without newlines around them."""
        for path in self._paths:
            try:
                with path.open(encoding="utf-8-sig") as file:  # a byte-order mark is no text
                    yield from self._split(file)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{str(path)!r} is not UTF-8 ({error.reason}): convert it, for example with iconv"
                ) from error

    def _split(self, file: TextIO) -> Iterator[str]:
        if self._separator is None:
            yield file.read()
            return
        rest = ""
        while piece := file.read(_PIECE):
            *complete, rest = (rest + piece).split(self._separator)
            yield from filter(None, (text.strip("\n") for text in complete))
        yield rest.strip("\n")

    @property
    def fingerprint(self) -> str:
        """Hash of the content of the files and of the separator."""
        marked = ["without marks"] if any(map(_has_mark, self._paths)) else []  # earlier versions kept them
        return digest(["text", identity(self._paths), self._separator, *marked])

    def num_documents(self) -> int | None:
        """Return the number of files, unless they are split."""
        return len(self._paths) if self._separator is None else sum(map(self._count, self._paths))

    def _count(self, path: Path) -> int:
        assert self._separator is not None
        with path.open("rb") as file:
            return sum(piece.count(self._separator.encode()) for piece in iter(lambda: file.read(_PIECE), b"")) + 1


def _has_mark(path: Path) -> bool:
    """Return whether a file begins with a byte-order mark."""
    with path.open("rb") as file:
        return file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
