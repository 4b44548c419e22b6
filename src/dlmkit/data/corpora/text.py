"""Text of one source."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from dlmkit.data.corpora.base import TokenizedCorpus
from dlmkit.data.files import cache_root
from dlmkit.data.packed_text import PackedText, tokenizer_folder
from dlmkit.data.packing import Split, SplitSeed, Statistics, ValFraction
from dlmkit.data.sequences import ArrowSequences
from dlmkit.data.sources.base import Source
from dlmkit.data.tokenizers.base import Tokenizer
from dlmkit.ranges import Tokens, checked


class TextCorpus(TokenizedCorpus):
    """Documents of a source, tokenized and packed once and then read from the cache.

    Args:
        source: where the documents come from.
        tokenizer: text to ids and back; one that is learned is fitted to the training documents only.
        length: L, tokens per sequence.
        val_fraction: share of the documents that are for validation, in (0, 1]; 1 to evaluate only.
        document_masking: whether batches carry segments, so that a token attends only within its own document.
        split_seed: of the choice of validation documents; separate from a run's seed, so that runs that differ in
            that are evaluated on the same text.
        cache_dir: ``None`` for $DLMKIT_CACHE, else $XDG_CACHE_HOME/dlmkit, else ~/.cache/dlmkit.
    """

    @checked
    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        length: Tokens,
        val_fraction: ValFraction = 0.05,
        document_masking: bool = False,
        split_seed: SplitSeed = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(tokenizer, length, document_masking)
        self._source = source
        self._split = Split(val_fraction, split_seed)
        self._cache = cache_root(cache_dir)
        self._packed = PackedText(source, tokenizer, self._split, length, self._cache)

    def prepare(self) -> None:
        """Fit the tokenizer and pack the documents, unless the cache has them."""
        self._tokenizer.fit(lambda: self._split.train_documents(self._source), self._tokenizer_folder)
        self._packed.pack()

    @cached_property
    def _tokenizer_folder(self) -> Path:
        return tokenizer_folder(self._cache, self._source, self._split)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of source, tokenizer, split, length and the way of packing."""
        return self._packed.fingerprint

    @property
    def folder(self) -> Path:
        """The packed sequences in the cache."""
        return self._packed.folder

    @property
    def train_sequences(self) -> ArrowSequences:
        """The training sequences; an epoch."""
        return self._packed.train_sequences

    @property
    def val_sequences(self) -> ArrowSequences:
        """The validation sequences."""
        return self._packed.val_sequences

    @property
    def statistics(self) -> dict[str, Statistics]:
        """Documents, sequences, tokens and bytes of ``train`` and ``val``."""
        return self._packed.statistics

    @property
    def val_bytes(self) -> int:
        """UTF-8 bytes of the text in the validation sequences."""
        return self.statistics["val"].bytes
