"""From completed tokens to text: what was given stays as it was written, gaps are read off their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlmkit.data.tokenizers.base import Tokenizer
from dlmkit.requests import Request


@dataclass(frozen=True)
class CompletedText:
    """One completed request.

    Attributes:
        text: given parts included, to the letter.
        tokens: its ids; what a bounded gap does not use is left out.
        num_generated: how many of the tokens were not given.
    """

    text: str
    tokens: list[int]
    num_generated: int


@dataclass(frozen=True)
class Texts:
    """What `LoadedModel.generate` returns, each list in the order of the prompts.

    Attributes:
        texts: given parts included.
        tokens: their ids.
        num_generated: tokens of each text that were not given.
        passes: passes of the network that each text took part in (NFE).
        seconds: on the wall clock, for all of them.
    """

    texts: list[str]
    tokens: list[list[int]]
    num_generated: list[int]
    passes: list[int]
    seconds: float

    @property
    def tokens_per_pass(self) -> float:
        """Generated tokens over passes of the network, of all texts together."""
        return sum(self.num_generated) / max(1, sum(self.passes))


def completed_text(request: Request, ids: Sequence[int], tokenizer: Tokenizer) -> CompletedText:
    """Return the text of a completed request.

    The pieces that were given are in it as they were written, whatever the tokenizer makes of spaces, line ends and
    letters that it does not know. Gaps are decoded as text that stands where they stand; neighbours together, since a
    letter's bytes may lie on both sides.

    Args:
        request: what was asked for.
        ids: its tokens, possibly cut off behind the last given one.
        tokenizer: the model's.
    """
    num_given = sum(request.fixed)
    if not request.pieces:
        return CompletedText(tokenizer.decode(ids), list(ids), len(ids) - num_given)
    texts: list[str] = []
    kept: list[int] = []
    gap: list[int] = []
    start = 0
    for piece in request.pieces:
        here = list(ids[start : start + piece.num_tokens])
        start += piece.num_tokens
        if piece.text is None:
            here = _until_end(here, tokenizer) if piece.bounded else here
            gap += here
        else:
            texts += [tokenizer.decode(gap, first=not texts), piece.text]
            gap = []
        kept += here
    texts.append(tokenizer.decode(gap, first=not texts))
    return CompletedText("".join(texts), kept, len(kept) - num_given)


def _until_end(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """Return the ids before the first end of a document, or padding."""
    ends = (tokenizer.eos_id, tokenizer.pad_id)
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]
