"""What several tests of the data pipeline need: documents, and the rule for error messages."""

from __future__ import annotations

import random

import pytest

WORDS = ["light", "darkness", "water", "earth", "heaven", "evening", "morning", "river", "naïve", "雲", "day", "night"]


def make_documents(number: int, seed: int = 0) -> list[str]:
    drawn = random.Random(seed)
    return [f"{i}: " + " ".join(drawn.choices(WORDS, k=drawn.randint(3, 30))) for i in range(number)]


def one_line(error: pytest.ExceptionInfo[ValueError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text
