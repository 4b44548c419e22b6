"""The interface of document sources."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator


class Source(ABC):
    """A fixed sequence of documents."""

    @abstractmethod
    def documents(self) -> Iterator[str]:
        """Yield the documents, in the same order at every call."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digits that change when the documents do."""

    def num_documents(self) -> int | None:
        """Return how many documents there are, for the progress bar, where that is cheap to know."""
        return None
