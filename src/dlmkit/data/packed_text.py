"""The packed sequences of one source of documents, kept in the cache."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from dlmkit.data.files import digest
from dlmkit.data.packing import Split, Statistics, cache_name, pack, read_statistics
from dlmkit.data.sequences import ArrowSequences
from dlmkit.data.sources.base import Source
from dlmkit.data.tokenizers.base import Tokenizer


def tokenizer_folder(cache: Path, source: Source, split: Split) -> Path:
    """Return the cache folder of the tokenizers that were fitted to the training documents of `source`."""
    return cache / "tokenizers" / digest([source.fingerprint, asdict(split)])


class PackedText:
    """The documents of one source, tokenized and packed once and then read from the cache.

    Args:
        source: where the documents come from.
        tokenizer: text to ids; fitted before :meth:`pack`.
        split: which documents are for validation.
        length: L, tokens per sequence.
        cache: root of the cache.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, split: Split, length: int, cache: Path) -> None:
        self._source = source
        self._tokenizer = tokenizer
        self._split = split
        self._length = length
        self._cache = cache
        self._is_packed = False

    def pack(self) -> None:
        """Tokenize and pack the documents, unless the cache has them undamaged, which is checked once."""
        if not self._is_packed:
            pack(self._source, self._tokenizer, self._split, self._length, self.folder)
            self._is_packed = True

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of source, tokenizer, split, length and the way of packing."""
        return cache_name(self._source, self._tokenizer, self._split, self._length)

    @property
    def folder(self) -> Path:
        """The packed sequences in the cache."""
        return self._cache / "blocks" / self.fingerprint  # the name that existing caches have

    @cached_property
    def train_sequences(self) -> ArrowSequences:
        """The training sequences."""
        return self._open("train")

    @cached_property
    def val_sequences(self) -> ArrowSequences:
        """The validation sequences."""
        return self._open("val")

    def _open(self, side: str) -> ArrowSequences:
        assert self.folder.is_dir(), "prepare() comes first"
        return ArrowSequences(self.folder / f"{side}.arrow")

    @cached_property
    def statistics(self) -> dict[str, Statistics]:
        """Documents, sequences, tokens and bytes of ``train`` and ``val``."""
        return read_statistics(self.folder)
