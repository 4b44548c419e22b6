"""The one place where an error without a class of its own is caught."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

DAMAGE = (ValueError, LookupError, TypeError, AttributeError)


@contextmanager
def damage_explained(line: str) -> Iterator[None]:
    """Turn what a tokenizer's files raise that cannot be read into `line`.

    The tokenizers library raises a plain ``Exception``; transformers passes on what follows from missing entries.

    Raises:
        ValueError: `line`, with the library's own words.
    """
    try:
        yield
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, DAMAGE):
            raise
        raise ValueError(f"{line} ({type(error).__name__}: {error})") from error
