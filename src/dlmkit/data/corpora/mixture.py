"""Text from several sources in stated proportions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlmkit.data.corpora.base import TokenizedCorpus
from dlmkit.data.files import cache_root, digest
from dlmkit.data.packed_text import PackedText, tokenizer_folder
from dlmkit.data.packing import Split, SplitSeed, ValFraction
from dlmkit.data.sequences import Sequences
from dlmkit.data.sources.base import Source
from dlmkit.data.tokenizers.base import Tokenizer
from dlmkit.ranges import Tokens, checked


@dataclass(frozen=True)
class _WeightedText:
    """The packed text of one source, and its share of the mixture in (0, 1]."""

    packed: PackedText
    share: float


class MixtureCorpus(TokenizedCorpus):
    """Sequences of several sources, each source with a fixed share; a sequence holds text of one source only.

    An epoch lasts until every source has been read completely: a source that is small for its share is repeated within
    it. Validation repeats nothing: it takes as many sequences as the scarcest source allows.

    Args:
        sources: name -> {source, weight}; weights are relative, such as 0.693584 and 0.306416.
        tokenizer: text to ids and back; one that is learned is fitted to the training documents of all sources.
        length, val_fraction, document_masking, split_seed, cache_dir: as for
            :class:`dlmkit.data.corpora.text.TextCorpus`.

    Raises:
        ValueError: no source, an entry that is not a source and a weight, or a weight that is not positive.
    """

    @checked
    def __init__(
        self,
        sources: Mapping[str, Mapping[str, Any]],
        tokenizer: Tokenizer,
        length: Tokens,
        val_fraction: ValFraction = 0.05,
        document_masking: bool = False,
        split_seed: SplitSeed = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(tokenizer, length, document_masking)
        _check(sources)
        self._split = Split(val_fraction, split_seed)
        self._cache = cache_root(cache_dir)
        self._joined = _Joined([entry["source"] for entry in sources.values()])
        total = sum(float(entry["weight"]) for entry in sources.values())
        self._texts = [
            _WeightedText(
                PackedText(entry["source"], tokenizer, self._split, length, self._cache),
                float(entry["weight"]) / total,
            )
            for entry in sources.values()
        ]

    def prepare(self) -> None:
        """Fit the tokenizer to all sources and pack each of them, unless the cache has them."""
        self._tokenizer.fit(lambda: self._split.train_documents(self._joined), self._tokenizer_folder)
        for text in self._texts:
            text.packed.pack()

    @cached_property
    def _tokenizer_folder(self) -> Path:
        return tokenizer_folder(self._cache, self._joined, self._split)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of every source, its share, the tokenizer and the packing."""
        return digest([[text.packed.fingerprint, round(text.share, 9)] for text in self._texts])

    @cached_property
    def train_sequences(self) -> MixedSequences:
        """The training sequences; an epoch."""
        sequences = [text.packed.train_sequences for text in self._texts]
        size = max(len(one) / text.share for one, text in zip(sequences, self._texts, strict=True))
        return MixedSequences(sequences, [round(size * text.share) for text in self._texts])

    @cached_property
    def val_sequences(self) -> MixedSequences:
        """The validation sequences, each one once."""
        return MixedSequences([text.packed.val_sequences for text in self._texts], self._num_val)

    @cached_property
    def _num_val(self) -> list[int]:
        """How many validation sequences of each source are used."""
        available = [len(text.packed.val_sequences) for text in self._texts]
        size = min(number / text.share for number, text in zip(available, self._texts, strict=True))
        return [
            min(number, max(1, round(size * text.share))) for number, text in zip(available, self._texts, strict=True)
        ]

    @property
    def val_bytes(self) -> int:
        """UTF-8 bytes of the text in the validation sequences, at each source's mean bytes per sequence."""
        used = zip(self._texts, self._num_val, strict=True)
        bytes_used = [
            text.packed.statistics["val"].bytes * number / len(text.packed.val_sequences) for text, number in used
        ]
        return round(sum(bytes_used))


class MixedSequences(Sequences):
    """The first `numbers[i]` sequences of each source i, source after source, repeated where a source has fewer.

    Args:
        sources: the sequences of each source, all of one length.
        numbers: how many sequences of each.
    """

    def __init__(self, sources: Sequence[Sequences], numbers: Sequence[int]) -> None:
        self._sources = list(sources)
        self._ends = np.cumsum(numbers)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def tokens(self, indices: Sequence[int]) -> NDArray[np.int32]:
        """Return the tokens of the sequences `indices`, int32 [B, L]."""
        return np.concatenate([source.tokens([index]) for source, index in map(self._find, indices)])

    def segments(self, indices: Sequence[int]) -> NDArray[np.int32]:
        """Return the document index of each token within its sequence, int32 [B, L], from 0 and non-decreasing."""
        return np.concatenate([source.segments([index]) for source, index in map(self._find, indices)])

    def _find(self, index: int) -> tuple[Sequences, int]:
        """Return the source of a sequence of the mixture, and the sequence's index in it."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        source = self._sources[number]
        start = int(self._ends[number - 1]) if number else 0
        return source, (index - start) % len(source)


class _Joined(Source):
    """The documents of several sources, to fit one tokenizer to all of them."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = list(sources)

    def documents(self) -> Iterator[str]:
        for source in self._sources:
            yield from source.documents()

    @property
    def fingerprint(self) -> str:
        return digest(["joined", *(source.fingerprint for source in self._sources)])


def _check(sources: Mapping[str, Mapping[str, Any]]) -> None:
    if not sources:
        raise ValueError("data.sources is empty: give at least one name with a source and a weight")
    for name, entry in sources.items():
        if not isinstance(entry, Mapping) or set(entry) != {"source", "weight"}:
            found = (", ".join(map(str, entry)) or "nothing") if isinstance(entry, Mapping) else entry
            raise ValueError(f"data.sources.{name} has {found}: give it a source and a weight, and nothing else")
        if not isinstance(entry["source"], Source):
            raise ValueError(f"data.sources.{name}.source {entry['source']!r} is no source: give it a _target_")
        weight = entry["weight"]
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
            raise ValueError(
                f"data.sources.{name}.weight {weight} is not a positive number: give one, or leave the source out"
            )
