"""Prompts with responses, for fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from dlmkit.data.corpora.base import TokenizedCorpus
from dlmkit.data.files import cache_root, digest
from dlmkit.data.packing import Split, SplitSeed, ValFraction
from dlmkit.data.sequences import MemorySequences
from dlmkit.data.sources.jsonl import JsonLines
from dlmkit.data.tokenizers.base import Tokenizer
from dlmkit.notices import notice
from dlmkit.ranges import Tokens, checked


@dataclass(frozen=True)
class Pair:
    """A prompt and the desired response."""

    prompt: str
    response: str


class PairsCorpus(TokenizedCorpus):
    """Sequences of the form [bos] prompt [sep] response [eos] [eos] ..., one pair each.

    Bos, prompt and separator are given and never noised; the response and the first eos are scored, and, with
    `score_padding`, also the padding, so that the model learns the length of a response. Of a pair that is too long,
    the end of the response is cut first (three positions are kept for bos, separator and eos), then the start of the
    prompt.

    Source: arXiv 2410.17891, appendix B.4, and its public code. The sequence has its own bos (`has_bos`), so that a
    backbone is built to prepend none.

    Args:
        files: JSON lines, a name or glob pattern, or several.
        val_files: the validation pairs; ``None``: `val_fraction` of the pairs of `files`.
        prompt: field of the prompt.
        response: field of the response.
        separator: text between prompt and response.
        score_padding: whether padding is noised and scored.
        tokenizer: text to ids and back; one that is learned is fitted to the prompts and responses of the training
            pairs.
        length: L, tokens per sequence.
        val_fraction: share of the pairs that are for validation, where there are no `val_files`.
        split_seed: of the choice of these pairs.

    Raises:
        ValueError: no pairs, an empty response, or a `length` too short for any pair.
    """

    has_bos = True

    @checked
    def __init__(
        self,
        files: str | Iterable[str],
        val_files: str | Iterable[str] | None,
        prompt: str,
        response: str,
        separator: str,
        score_padding: bool,
        tokenizer: Tokenizer,
        length: Tokens,
        val_fraction: ValFraction = 0.05,
        split_seed: SplitSeed = 0,
    ) -> None:
        super().__init__(tokenizer, length)
        pairs = _read(files, prompt, response)
        if val_files is None:
            split = Split(val_fraction, split_seed)
            sides = [split.side(pair.prompt) for pair in pairs]
            self.train_pairs = [pair for pair, side in zip(pairs, sides, strict=True) if side == "train"]
            self.val_pairs = [pair for pair, side in zip(pairs, sides, strict=True) if side == "val"]
        else:
            self.train_pairs, self.val_pairs = pairs, _read(val_files, prompt, response)
        for side, some in (("train", self.train_pairs), ("val", self.val_pairs)):
            if not some:
                different = len({pair.prompt for pair in pairs})
                raise ValueError(
                    f"no pair is left to {side} out of {len(pairs)} with {different} different prompts, which decide"
                    " the side: give more prompts, another val_fraction, or data.val_files"
                )
        self._separator = separator
        self._score_padding = score_padding
        self._encoded: dict[str, MemorySequences] = {}

    def prepare(self) -> None:
        """Fit the tokenizer and encode the pairs; the sequences stay in memory, since a set of pairs is small."""
        if self._encoded:
            return
        texts = [text for pair in self.train_pairs for text in (pair.prompt, pair.response)]
        self._tokenizer.fit(lambda: texts, cache_root(None) / "tokenizers" / digest(texts))
        sides = {"train": self.train_pairs, "val": self.val_pairs}
        self._encoded = {side: self._encode(side, pairs) for side, pairs in sides.items()}

    def encode_prompt(self, prompt: str, room: int) -> list[int]:
        """Return bos, prompt and separator; the prompt loses its start so that `room` tokens of the sequence are free.

        Raises:
            ValueError: no token of the prompt is left.
        """
        tokenizer = self._tokenizer
        separator = tokenizer.encode(self._separator)
        ids = tokenizer.encode(prompt)
        keep = self.length - room - len(separator) - 1
        if keep < 1:
            raise ValueError(
                f"length {self.length} leaves no room for a prompt beside {room} tokens of response: raise length"
            )
        return [tokenizer.bos_id, *ids[max(0, len(ids) - keep) :], *separator]

    def _encode(self, side: str, pairs: Sequence[Pair]) -> MemorySequences:
        tokens = np.full((len(pairs), self.length), self._tokenizer.eos_id, dtype=np.int32)
        scored = np.zeros((len(pairs), self.length), dtype=np.bool_)
        num_separator = len(self._tokenizer.encode(self._separator))
        kept = self.length - 3 - num_separator
        cut_prompts = cut_responses = 0
        for row, pair in enumerate(pairs):
            whole = self._tokenizer.encode(pair.response)
            response = whole[:kept]
            given = self.encode_prompt(pair.prompt, len(response) + 1)
            end = len(given) + len(response) + 1
            cut_responses += len(response) < len(whole)
            cut_prompts += len(given) - 1 - num_separator < len(self._tokenizer.encode(pair.prompt))
            tokens[row, : end - 1] = given + response
            scored[row, len(given) : self.length if self._score_padding else end] = True
        if cut_prompts or cut_responses:
            notice(
                f"of {len(pairs):,} {side} pairs {cut_prompts:,} prompts lose their beginning and {cut_responses:,}"
                f" responses their end at length {self.length}: raise length to keep them"
            )
        return MemorySequences(tokens, scored)

    @property
    def train_sequences(self) -> MemorySequences:
        """The training pairs; an epoch."""
        return self._sequences("train")

    @property
    def val_sequences(self) -> MemorySequences:
        """The validation pairs."""
        return self._sequences("val")

    def _sequences(self, side: str) -> MemorySequences:
        assert self._encoded, "prepare() comes first"
        return self._encoded[side]

    @property
    def num_val_tokens(self) -> int:
        """Number of scored tokens in the validation pairs."""
        return int(self.val_sequences.scored(range(len(self.val_sequences))).sum())

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the pairs, the tokenizer and the form of a sequence."""
        form = [self._separator, self._score_padding, self.length, self._tokenizer.fingerprint]
        return digest([form, *([asdict(pair) for pair in side] for side in (self.train_pairs, self.val_pairs))])


def _read(files: str | Iterable[str], prompt: str, response: str) -> list[Pair]:
    source = JsonLines(files, prompt)
    before = source.fingerprint
    pairs = [Pair(*both) for both in source.rows(prompt, response)]
    if source.fingerprint != before:
        raise ValueError(f"{files} changed while it was read: run again when nothing writes to it")
    for number, pair in enumerate(pairs, start=1):
        if not pair.response.strip():
            raise ValueError(f"pair {number} of {files} has an empty {response!r}: leave it out")
    return pairs
