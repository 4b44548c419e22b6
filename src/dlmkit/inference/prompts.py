"""A file of prompts: JSON lines, each a text to continue or one with gaps."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlmkit.data.sources.jsonl import parse_object
from dlmkit.ranges import shown

KINDS = ("prompt", "infill")


@dataclass(frozen=True)
class Prompt:
    """One line of the file.

    Attributes:
        place: "'prompts.jsonl' line 3", for messages.
        id: its own, or the number of the line, from 1.
        text: to continue, or with gaps.
        infill: whether it has gaps.
    """

    place: str
    id: str | int
    text: str
    infill: bool


@dataclass(frozen=True)
class PromptFile:
    """A file of prompts, which is read line by line, as often as it is needed.

    A line is {"prompt": TEXT} or {"infill": TEXT}, with an "id" (text or a whole number) if it is to be known by
    another one than its number; other keys are for its owner. Empty lines are passed over.

    Attributes:
        path: of the file.
        gaps_only: whether each line must be an infill.
    """

    path: Path
    gaps_only: bool = False

    def __iter__(self) -> Iterator[Prompt]:
        """Yield the prompts in their order.

        Raises:
            ValueError: a line that is none, with the file and the line's number.
        """
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield self._parsed(line, number)

    def check(self, each: Callable[[Prompt], object]) -> int:
        """Look at every line before anything is made of one, and return how many prompts there are.

        Memory grows by 8 bytes for each line.

        Args:
            each: raises ValueError for a prompt that cannot be met.

        Raises:
            ValueError: no regular file, no prompt in it, a bad line, or two prompts of one id.
        """
        if not self.path.is_file():
            what = "is read twice, so it must be a file" if self.path.exists() else "does not exist"
            raise ValueError(f"{str(self.path)!r} {what}: name a file with one JSON object a line")
        ids = array("Q")
        for prompt in self:
            try:
                each(prompt)
            except ValueError as error:
                raise ValueError(f"{prompt.place}: {error}") from error
            ids.append(_digest(prompt.id))
        if not ids:
            raise ValueError(
                f'{str(self.path)!r} has no prompt: write one JSON object a line, such as {{"prompt": "In"}}'
            )
        values, counts = np.unique(np.frombuffer(ids, dtype=np.uint64), return_counts=True)
        self._refuse_twins(set(values[counts > 1].tolist()))
        return len(ids)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _refuse_twins(self, suspects: set[int]) -> None:
        """Raise ValueError for two prompts of one id, among those whose digests are equal."""
        seen: dict[str | int, str] = {}
        for prompt in self if suspects else ():
            if _digest(prompt.id) in suspects:
                if prompt.id in seen:
                    raise ValueError(
                        f"{prompt.place}: id {shown(prompt.id)} is that of {seen[prompt.id]} too: give each line its"
                        " own, or leave ids out for the numbers of the lines"
                    )
                seen[prompt.id] = prompt.place.rpartition("' ")[2]

    def _parsed(self, line: bytes, number: int) -> Prompt:
        place = f"{str(self.path)!r} line {number}"
        row = parse_object(line, place)
        given = [key for key in KINDS if row.get(key) is not None]
        if self.gaps_only and given != ["infill"]:
            raise ValueError(f'{place} is no text with gaps: write it as {{"infill": "In the [MASK:4] God"}}')
        if len(given) != 1:
            has = f"has {' and '.join(given)}" if given else f"has neither prompt nor infill, but {_keys(row)}"
            raise ValueError(f'{place} {has}: give one of them, such as {{"prompt": "In the beginning"}}')
        text, known_by = row[given[0]], row.get("id", number)
        if not isinstance(text, str):
            raise ValueError(f"{place}: {given[0]} {shown(text)} is not text: write it in quotes")
        if isinstance(known_by, bool) or not isinstance(known_by, str | int):
            raise ValueError(f"{place}: id {shown(known_by)} is neither text nor a whole number: give one of these")
        if isinstance(known_by, str) and any("\ud800" <= letter <= "\udfff" for letter in known_by):
            raise ValueError(f"{place}: id {shown(known_by)} has half of a surrogate pair: write the letter itself")
        return Prompt(place, known_by, text, given[0] == "infill")


def _keys(row: dict[str, Any]) -> str:
    return ", ".join(map(repr, list(row)[:5])) or "nothing"


def _digest(known_by: str | int) -> int:
    return int.from_bytes(hashlib.blake2b(json.dumps(known_by).encode(), digest_size=8).digest(), "little")
