"""Hints for mistyped names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CUTOFF = 0.5
"""Names less similar than this (difflib's ratio, in [0, 1]) are no hint."""


def closest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice whose spelling is closest to `name`, or ``None`` when none is close."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=CUTOFF)
    return close[0] if close else None


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return " (nearest: CHOICE)" for an error message, or an empty text when no choice is close to `name`."""
    choice = closest(name, choices)
    return "" if choice is None else f" (nearest: {choice})"
