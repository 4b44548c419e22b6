"""From what a user asks for (nothing, a prompt, a text with gaps) to canvases that samplers fill."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from dlmkit.types import Canvas

GAP = re.compile(r"\[MASK:([0-9]{1,7})\]")
"""A gap of n tokens in a text to fill in."""

NO_GAP = re.compile(r"\[MASK(?=[\]:\s]|$)[^\]]{0,20}\]?", re.IGNORECASE)
"""What was meant as a gap and is none."""

FILLER = 0
"""Id at free positions of a request; it is never read."""


class Encoder(Protocol):
    """What requests need of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`."""


@dataclass(frozen=True)
class Request:
    """One text to generate.

    Attributes:
        tokens: L ids; what is not fixed is overwritten.
        fixed: L flags; given tokens.
    """

    tokens: list[int]
    fixed: list[bool]

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.fixed):
            raise ValueError(f"{len(self.tokens)} tokens with {len(self.fixed)} flags: give one flag for each token")


@dataclass(frozen=True)
class RequestBuilder:
    """Makes requests for one network.

    A network that does not predict token 0 (`Backbone.predicts_first`) needs a given first token. To a text without
    one (an empty prompt, or a gap at the start) `start_id` is prepended, and it stays in the completed tokens.

    Attributes:
        predicts_first: whether token 0 is predicted.
        start_id: id prepended where token 0 must be given, usually the end of document; ``None``: the data has none.
    """

    predicts_first: bool
    start_id: int | None

    def prompt(self, ids: Sequence[int], length: int) -> Request:
        """Return a request to continue a prompt; with an empty one, unconditional text.

        Args:
            ids: of the prompt; nothing is put before them unless there are none.
            length: L, given tokens included (the prompt, or the start token).

        Raises:
            ValueError: `length` leaves no free position, or the prompt is empty and there is no `start_id`.
        """
        given = [*(() if ids else self._start()), *ids]
        if length <= len(given):
            raise ValueError(
                f"length {length} leaves no room behind {len(given)} given tokens: ask for at least {len(given) + 1}"
            )
        free = length - len(given)
        return Request(given + [FILLER] * free, [True] * len(given) + [False] * free)

    def unconditional(self, length: int) -> Request:
        """Return a request for text of `length` tokens, the start token included where one is prepended.

        Raises:
            ValueError: as for `prompt`.
        """
        return self.prompt((), length)

    def infill(self, text: str, tokenizer: Encoder) -> Request:
        """Return a request to fill the gaps of a text, "[MASK:n]" standing for n tokens.

        Raises:
            ValueError: no gap, a malformed one, or only gaps of no token.
        """
        pieces = GAP.split(text)
        for piece in pieces[::2]:
            if (malformed := NO_GAP.search(piece)) is not None:
                raise ValueError(
                    f"{malformed[0]!r} is no gap: write [MASK:n] with a whole number n of tokens, such as [MASK:4]"
                )
        if len(pieces) == 1:
            raise ValueError('the text has no gap: write one as [MASK:n] with n tokens, such as "In the [MASK:4] God"')
        tokens: list[int] = []
        fixed: list[bool] = []
        for index, piece in enumerate(pieces):
            ids = [FILLER] * int(piece) if index % 2 else tokenizer.encode(piece)
            tokens += ids
            fixed += [index % 2 == 0] * len(ids)
        if all(fixed):
            raise ValueError("the text has only gaps of no token: write [MASK:n] with n of at least 1")
        start = [] if fixed[0] else self._start()
        return Request(start + tokens, [True] * len(start) + fixed)

    def _start(self) -> list[int]:
        if self.predicts_first:
            return []
        if self.start_id is None:
            raise ValueError(
                "this network does not predict its first token (backbone.bos=none), and the data has no end of document"
                " to start from: give a prompt, or train with backbone.bos=prepend"
            )
        return [self.start_id]


@dataclass(frozen=True)
class RequestBatch:
    """Requests of one length as a canvas.

    Attributes:
        indices: place of each row among the requests.
        canvas: tokens and given positions, [B, L].
    """

    indices: list[int]
    canvas: Canvas


def batches(requests: Sequence[Request], batch_size: int, device: torch.device | str) -> Iterator[RequestBatch]:
    """Yield canvases of at most `batch_size` requests, each of one length L; given positions may differ by row.

    Texts of unequal length are never padded into one canvas, because a bidirectional network would attend to the
    padding.

    Args:
        requests: in any order and of any lengths.
        batch_size: rows of a canvas, at least 1.
        device: of the tensors.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        by_length[len(request.tokens)].append(index)
    for indices in by_length.values():
        for start in range(0, len(indices), batch_size):
            rows = indices[start : start + batch_size]
            tokens = torch.tensor([requests[row].tokens for row in rows], device=device)
            fixed = torch.tensor([requests[row].fixed for row in rows], device=device)
            yield RequestBatch(rows, Canvas(tokens, fixed))
