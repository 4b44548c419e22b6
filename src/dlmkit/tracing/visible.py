"""Text that acts on nothing: what a model wrote may hold controls of a terminal and marks that turn lines around."""

from __future__ import annotations

import unicodedata

LINE_END = "\u21b5"
HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode's categories of what acts on a terminal, or shows nothing."""
JOINERS = "\u200c\u200d"
"""Which emoji and some scripts need, and which act on nothing."""


def visible(text: str) -> str:
    """Return the text with controls and marks of direction as escapes, and line ends as a sign."""
    return "".join(LINE_END if letter == "\n" else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    if letter in JOINERS or unicodedata.category(letter) not in HIDDEN:
        return letter
    return letter.encode("unicode_escape").decode("ascii")
