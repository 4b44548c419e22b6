"""A vocabulary and traces for the tests of this folder."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmkit.generation import Beginning, Event
from dlmkit.samplers.base import Reading
from dlmkit.tracing.builder import TraceBuilder
from dlmkit.tracing.record import Alternative, Change, SampleTrace, Token, Trace, TraceStep

HOSTILE = "</script><img src=x onerror=alert(1)><!-- & \u202eevil\x1b[31m"
WORDS = ["the", " sea", " sky", "\\xe2", "\n", HOSTILE]
MASK = len(WORDS)
V = MASK + 1


def decode(token_id: int) -> str:
    return WORDS[token_id] if token_id < MASK else "[MASK]"


def logits_of(*rows: list[float]) -> Tensor:
    """Logits [N, V] from probabilities of the first tokens; the mask is impossible."""
    probabilities = torch.zeros(len(rows), V)
    for index, row in enumerate(rows):
        probabilities[index, : len(row)] = torch.tensor(row)
    return probabilities.log() + 3.0  # logits are known up to a constant


def begun(tokens: Tensor, fixed: Tensor, blank: Tensor | None = None, places: list[int] | None = None) -> Beginning:
    """A batch before its first step."""
    at = torch.arange(len(tokens)) if places is None else torch.tensor(places)
    return Beginning(tokens, fixed, torch.zeros_like(fixed) if blank is None else blank, at)


def stepped(
    rows: Tensor, before: Tensor, after: Tensor, where: Tensor | None, logits: Tensor | None, t: Tensor, passes: Tensor
) -> Event:
    """A step of some rows."""
    reading = None if where is None or logits is None else Reading(where, logits)
    return Event(0, 1, rows, before, after, reading, t, passes)


def trace() -> Trace:
    """One position given, two free: committed, masked again, committed, replaced."""
    builder = TraceBuilder(decode, MASK, 2)
    states = torch.tensor([[0, MASK, MASK], [0, 1, MASK], [0, MASK, 5], [0, 2, 4]])
    fixed = torch.tensor([[True, False, False]])
    builder.start(begun(states[:1], fixed))
    for k in range(3):
        before, after = states[k : k + 1], states[k + 1 : k + 2]
        logits = logits_of([0.1, 0.6, 0.3], [0.25, 0.25, 0.1, 0.1, 0.1, 0.2])
        t = torch.tensor([1 - k / 3], dtype=torch.float64)
        builder.step(stepped(torch.tensor([0]), before, after, ~fixed, logits, t, torch.tensor([1])))
    return builder.finish(
        "runs/<b>a</b>", "ancestral", {"steps": 3, "temperature": 0.5, "top_k": None}, 7, ["the sky\n"]
    )


def long_trace(num_samples: int = 16, length: int = 1024) -> Trace:
    """The longest that the page is made for: a token in each step."""
    word, other = Token(1, " sea"), Token(2, " sky")
    others = [Alternative(1, " sea", 0.6), Alternative(2, " sky", 0.3)]
    steps = [
        TraceStep(k, 1 - k / length, 1, [Change(k, word if k % 2 else other, None, "committed", 0.5, others)], k + 1)
        for k in range(length)
    ]
    empty: list[Token | None] = [None] * length
    return Trace("m", "s", {}, 0, [SampleTrace("", empty, empty, steps, " sea" * length)] * num_samples)
