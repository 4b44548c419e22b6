"""The interface of document sources."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator


class Source(ABC):
    """A fixed sequence of documents."""

    single_document_remedy: str | None = None
    """What to do where all text is one document, which cannot be split into training and validation."""

    @abstractmethod
    def documents(self) -> Iterator[str]:
        """Yield the documents, in the same order at every call."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digits that change when the documents do."""

    def unchanged_documents(self) -> Iterator[str]:
        """Yield the documents.

        Raises:
            ValueError: (in the end) they changed while they were read.
        """
        before = self.fingerprint
        yield from self.documents()
        if self.fingerprint != before:
            raise ValueError("the text changed while it was read: run again when nothing writes to its files")

    def num_documents(self) -> int | None:
        """Return how many documents there are, for the progress bar, where that is cheap to know."""
        return None
