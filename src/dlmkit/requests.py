"""From what a user asks for (nothing, a prompt, a text with gaps) to canvases that samplers fill."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from dlmkit.types import Canvas

GAP = re.compile(r"\[MASK:(<=)?([0-9]{1,7})\]")
"""A gap of n tokens, or of at most n, in a text to fill in."""

NO_GAP = re.compile(r"\[MASK(?=[\]:\s<]|$)[^\]]{0,20}\]?", re.IGNORECASE)
"""What was meant as a gap and is none."""

FILLER = 0
"""Id at free positions of a request; it is never read."""


class Encoder(Protocol):
    """What requests need of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`."""

    def encode_inside(self, text: str) -> list[int]:
        """Return the ids of a text that other text stands before."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a text: given, or to be read off its tokens.

    Attributes:
        num_tokens: how many of the request's tokens it has.
        text: as it was given, to the letter; ``None`` where the tokens say it.
        bounded: whether the text may end before the tokens do, at the first end of a document.
    """

    num_tokens: int
    text: str | None = None
    bounded: bool = False


@dataclass(frozen=True)
class Request:
    """One text to generate.

    Attributes:
        tokens: L ids; what is not fixed is overwritten.
        fixed: L flags; given tokens.
        pieces: the stretches of the text in their order; none where the tokens say all of it.
    """

    tokens: list[int]
    fixed: list[bool]
    pieces: tuple[Piece, ...] = ()

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.fixed):
            raise ValueError(f"{len(self.tokens)} tokens with {len(self.fixed)} flags: give one flag for each token")

    @property
    def num_free(self) -> int:
        """Tokens to generate."""
        return len(self.fixed) - sum(self.fixed)


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

    def prompt(self, ids: Sequence[int], length: int, text: str | None = None) -> Request:
        """Return a request to continue a prompt; with an empty one, unconditional text.

        Args:
            ids: of the prompt; nothing is put before them unless there are none.
            length: L, given tokens included (the prompt, or the start token).
            text: of the prompt, which the completed text then begins with to the letter.

        Raises:
            ValueError: `length` leaves no free position, or the prompt is empty and there is no `start_id`.
        """
        given = [*(() if ids else self._start()), *ids]
        if length <= len(given):
            raise ValueError(
                f"length {length} leaves no room behind {len(given)} given tokens: ask for at least {len(given) + 1}"
            )
        free = length - len(given)
        pieces = (Piece(len(given), text), Piece(free)) if text else ()
        return Request(given + [FILLER] * free, [True] * len(given) + [False] * free, pieces)

    def unconditional(self, length: int) -> Request:
        """Return a request for text of `length` tokens, the start token included where one is prepended.

        Raises:
            ValueError: as for `prompt`.
        """
        return self.prompt((), length)

    def infill(self, text: str, tokenizer: Encoder) -> Request:
        """Return a request to fill the gaps of a text, "[MASK:n]" for n tokens and "[MASK:<=n]" for at most n.

        What is given is encoded piece by piece, each as text that stands where it stands, so that no token reaches
        into a gap.

        Raises:
            ValueError: no gap, a malformed one, or only gaps of no token.
        """
        tokens: list[int] = []
        fixed: list[bool] = []
        pieces: list[Piece] = []
        for piece in parsed(text):
            ids = [FILLER] * piece.num_tokens
            if piece.text is not None:
                ids = tokenizer.encode_inside(piece.text) if pieces else tokenizer.encode(piece.text)
            tokens += ids
            fixed += [piece.text is not None] * len(ids)
            pieces.append(replace(piece, num_tokens=len(ids)))
        if all(fixed):
            raise ValueError("the text has only gaps of no token: write [MASK:n] with n of at least 1")
        start = [] if fixed[0] else self._start()
        before = [Piece(len(start))] if start else []
        return Request(start + tokens, [True] * len(start) + fixed, (*before, *pieces))

    def _start(self) -> list[int]:
        if self.predicts_first:
            return []
        if self.start_id is None:
            raise ValueError(
                "this network does not predict its first token (backbone.bos=none), and the data has no end of document"
                " to start from: give a prompt, or train with backbone.bos=prepend"
            )
        return [self.start_id]


def parsed(text: str) -> list[Piece]:
    """Return the pieces of a text with gaps; those that are given have no tokens yet.

    Raises:
        ValueError: no gap, or a malformed one.
    """
    pieces: list[Piece] = []
    end = 0
    for gap in GAP.finditer(text):
        pieces += [Piece(0, text[end : gap.start()]), Piece(int(gap[2]), bounded=gap[1] is not None)]
        end = gap.end()
    pieces.append(Piece(0, text[end:]))
    for piece in pieces:
        if piece.text and (malformed := NO_GAP.search(piece.text)) is not None:
            raise ValueError(
                f"{malformed[0]!r} is no gap: write [MASK:n] with a whole number n of tokens, such as [MASK:4], or"
                " [MASK:<=n] for at most n"
            )
    if len(pieces) == 1:
        raise ValueError('the text has no gap: write one as [MASK:n] with n tokens, such as "In the [MASK:4] God"')
    return [piece for piece in pieces if piece.text != ""]


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
