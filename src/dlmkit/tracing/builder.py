"""Builds a trace while a sampler works; reads what the steps read, and changes nothing of it.

Shapes: B texts, L positions, R rows of a step, N positions where it read logits, V vocabulary. t = 0 is data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dlmkit.generation import Beginning, Event
from dlmkit.tracing.record import Alternative, Change, SampleTrace, Setting, Token, Trace, TraceStep, kind_of

DIGITS = 6
"""Significant digits of probabilities, about float32's."""


@dataclass
class _Row:
    """What is known of one text so far."""

    place: int
    given: list[Token | None]
    initial: list[Token | None]
    steps: list[TraceStep] = field(default_factory=list)


@dataclass(frozen=True)
class _Reading:
    """What a prediction said at n positions: confidence [n], ids and probabilities of the likeliest tokens [n, k]."""

    confidence: list[float]
    ids: list[list[int]]
    probabilities: list[list[float]]


class TraceBuilder:
    """Records the steps of one request, batch after batch.

    A step costs a top-k and a log-sum-exp of the logits at the positions that it changed, and waits for the device.
    Nothing is drawn and nothing is written to, so that the samples are those without a trace.

    Args:
        decode: the text of one token, such as a tokenizer's `piece`.
        mask_id: id of the mask; ``None`` for noise without one.
        top_k: alternatives of each change, at least 0.
    """

    def __init__(self, decode: Callable[[int], str], mask_id: int | None, top_k: int = 5) -> None:
        if top_k < 0:
            raise ValueError(f"top_k {top_k} is below 0: use 0 for no alternatives")
        self._decode = decode
        self._mask_id = mask_id
        self._top_k = top_k
        self._known: dict[int, Token] = {}
        self._rows: list[_Row] = []
        self._first = 0
        self._fixed = torch.zeros(0, 0, dtype=torch.bool)
        self._blank = self._fixed

    def start(self, beginning: Beginning) -> None:
        """Begin a batch; later steps are about its rows. `blank` positions hold no token until a step reads them."""
        self._first = len(self._rows)
        self._fixed, self._blank = beginning.fixed.clone(), beginning.blank
        empty = self._is_mask(beginning.tokens) | self._blank
        columns = (beginning.places, beginning.tokens, beginning.fixed, empty)
        for place, ids, flags, gone in zip(*(column.tolist() for column in columns), strict=True):
            given = [self._token(i) if flag else None for i, flag in zip(ids, flags, strict=True)]
            initial = [None if none else self._token(i) for i, none in zip(ids, gone, strict=True)]
            self._rows.append(_Row(place, given, initial))

    @torch.no_grad()
    def step(self, event: Event) -> None:
        """Record one step of some rows of the batch."""
        before, after = event.before, event.after
        rows = event.rows.to(before.device)
        blank = self._blank[rows]
        changed = before != after
        if event.reading is not None:
            changed = changed | (blank & event.reading.where)
        empty = self._is_mask(before) | blank
        left = self._is_mask(after) | (blank & ~changed)
        decided = (~left & ~self._fixed[rows]).sum(-1)
        self._blank = self._blank.index_put((rows,), blank & ~changed)
        found = changed.nonzero()
        columns = torch.stack([before[changed], after[changed], empty[changed].long(), left[changed].long()], dim=1)
        changes = self._changes(found.tolist(), columns.tolist(), *self._read(changed, event))
        numbers = zip(rows.tolist(), event.t.tolist(), event.passes.tolist(), decided.tolist(), strict=True)
        for index, (row, time, count, number) in enumerate(numbers):
            steps = self._rows[self._first + row].steps
            steps.append(TraceStep(len(steps), float(time), int(count), changes.get(index, []), number))

    def finish(
        self,
        model: str,
        sampler: str,
        settings: Mapping[str, Setting],
        seed: int,
        texts: Sequence[str],
        prompts: Sequence[str] | None = None,
    ) -> Trace:
        """Return the trace.

        Args:
            model: its name or folder.
            sampler: its name.
            settings: of the sampler and the request.
            seed: of the noise.
            texts: the final text of each sample, decoded as a whole, in the order of the request.
            prompts: what was asked for, in the same order; ``None`` for nothing.

        Raises:
            ValueError: another number of texts than of samples.
        """
        rows = sorted(self._rows, key=lambda row: row.place)
        prompts = [""] * len(texts) if prompts is None else prompts
        if not len(rows) == len(texts) == len(prompts):
            raise ValueError(f"{len(rows)} samples, {len(texts)} texts, {len(prompts)} prompts: give one of each")
        samples = [
            SampleTrace(prompt, row.given, row.initial, row.steps, text)
            for row, text, prompt in zip(rows, texts, prompts, strict=True)
        ]
        return Trace(model, sampler, dict(settings), seed, samples)

    def _is_mask(self, tokens: Tensor) -> Tensor:
        return torch.zeros_like(tokens, dtype=torch.bool) if self._mask_id is None else tokens == self._mask_id

    def _token(self, token_id: int) -> Token:
        if token_id not in self._known:
            self._known[token_id] = Token(token_id, self._decode(token_id))
        return self._known[token_id]

    def _read(self, changed: Tensor, event: Event) -> tuple[list[int], _Reading]:
        """Return the place of each change in what was read of it, -1 for those without any, and what was read."""
        if event.reading is None:
            return [-1] * int(changed.sum()), _Reading([], [], [])
        where = event.reading.where
        chosen = event.reading.logits[changed[where]].float()  # [n, V], n changes whose prediction was read
        read = where[changed]
        places = torch.where(read, read.long().cumsum(0) - 1, -1)
        # Of a token that was masked again, its own probability.
        shown = torch.where(self._is_mask(event.after), event.before, event.after)[changed & where]
        total = chosen.logsumexp(-1, keepdim=True)
        confidence = (chosen.gather(-1, shown[:, None]) - total).exp()[:, 0]
        values, ids = chosen.topk(min(self._top_k, chosen.shape[-1]), dim=-1)
        return places.tolist(), _Reading(confidence.tolist(), ids.tolist(), (values - total).exp().tolist())

    def _changes(
        self, found: list[list[int]], columns: list[list[int]], places: list[int], reading: _Reading
    ) -> dict[int, list[Change]]:
        """Return the changes of each row of the step."""
        changes: dict[int, list[Change]] = {}
        for (row, position), (old, new, was_empty, is_empty), place in zip(found, columns, places, strict=True):
            before = None if was_empty else self._token(old)
            token = None if is_empty else self._token(new)
            kind = kind_of(None if was_empty else old, None if is_empty else new)
            confidence = None if place < 0 else _rounded(reading.confidence[place])
            likeliest = [] if place < 0 else self._alternatives(reading.ids[place], reading.probabilities[place])
            changes.setdefault(row, []).append(Change(position, token, before, kind, confidence, likeliest))
        return changes

    def _alternatives(self, ids: list[int], probabilities: list[float]) -> list[Alternative]:
        """Return those that are possible at all."""
        tokens = [self._token(i) for i, p in zip(ids, probabilities, strict=True) if p > 0]
        return [Alternative(token.id, token.text, _rounded(p)) for token, p in zip(tokens, probabilities, strict=False)]


def _rounded(probability: float) -> float:
    return min(1.0, float(f"{probability:.{DIGITS}g}"))
