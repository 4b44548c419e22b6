"""Packing: documents -> sequences of L tokens, stored as Arrow files.

Each document is followed by the end-of-document token (which belongs to it), documents are concatenated, and the
stream is cut into sequences of L tokens; the remainder is dropped. A hash of its text decides whether a document is for
training or for validation, so that equal documents are always on the same side, and documents stay on their side when
the corpus grows.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dlmkit.data.checksums import FILE as CHECKSUMS
from dlmkit.data.checksums import damage_in, write_checksums
from dlmkit.data.files import digest, write_folder
from dlmkit.data.sequences import ArrowSequences, sequence_schema
from dlmkit.data.sources.base import Source
from dlmkit.data.tokenizers.base import Tokenizer
from dlmkit.notices import notice
from dlmkit.ranges import Range, check_fields

PACKING_VERSION = 1  # raise whenever the stored sequences change
SIDES = ("train", "val")
_BATCH_CHARACTERS = 2**20  # text given to the tokenizer at once
_TOKENS_PER_WRITE = 2**20
# key in statistics.json, as in existing caches -> attribute of Statistics
_ATTRIBUTES = {"documents": "documents", "blocks": "sequences", "tokens": "tokens", "bytes": "bytes"}


ValFraction = Annotated[float, Range("(0, 1]", "it is the share of documents for validation, for example 0.05")]
SplitSeed = Annotated[int, Range(f"[{-(2**63)}, {2**63 - 1}]", "give a whole number, such as 0")]


@dataclass(frozen=True)
class Split:
    """Which documents are for validation.

    Attributes:
        val_fraction: expected share of the documents, in (0, 1]; 1 leaves nothing to train on, only to evaluate.
        seed: of the choice.
    """

    val_fraction: ValFraction
    seed: SplitSeed

    def __post_init__(self) -> None:
        check_fields(self)

    def side(self, text: str) -> str:
        """Return ``train`` or ``val``, the same at every call and on every machine."""
        key = self.seed.to_bytes(8, "little", signed=True)
        drawn = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "little")
        return "val" if drawn < self.val_fraction * 2**64 else "train"

    def train_documents(self, source: Source) -> Iterator[str]:
        """Yield the training documents, to which a tokenizer may be fitted."""
        return (text for text in source.unchanged_documents() if self.side(text) == "train")


@dataclass(frozen=True)
class Statistics:
    """What was packed on one side, ``train`` or ``val``.

    Attributes:
        documents: number of documents read, complete or not.
        sequences: number of sequences.
        tokens: number of tokens in these sequences, end-of-document tokens included.
        bytes: UTF-8 bytes of the text in these sequences; a document that is cut counts by its share of tokens.
    """

    documents: int
    sequences: int
    tokens: int
    bytes: int


def pack(source: Source, tokenizer: Tokenizer, split: Split, length: int, folder: Path) -> None:
    """Tokenize and pack both sides into `folder`, unless it exists undamaged.

    Raises:
        ValueError: the folder cannot be written to, the corpus changes while it is read, or a side has no sequence.
    """
    inode = folder.stat().st_ino if folder.is_dir() else None
    damage = None if inode is None else _damage_in(folder)
    if inode is not None and damage is None:
        return
    if damage is not None:
        notice(f"{damage}: the cache {folder} is rebuilt")
    write_folder(folder, lambda draft: _pack_into(draft, source, tokenizer, split, length), inode)


def _damage_in(folder: Path) -> str | None:
    """Return what is wrong with a packed folder, or ``None``; one of an earlier version gets checksums."""
    if (folder / CHECKSUMS).is_file():
        return damage_in(folder)
    try:
        expected = read_statistics(folder)
        found = {side: len(ArrowSequences(folder / f"{side}.arrow")) for side in SIDES}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{folder.name} cannot be read ({type(error).__name__})"
    for side in SIDES:
        if found[side] != expected[side].sequences:
            return f"{side}.arrow has {found[side]} sequences instead of {expected[side].sequences}"
    if os.access(folder, os.W_OK):
        write_checksums(folder)
    return None


def cache_name(source: Source, tokenizer: Tokenizer, split: Split, length: int) -> str:
    """Return 16 hex digits of everything that the packed sequences depend on."""
    return digest([PACKING_VERSION, source.fingerprint, tokenizer.fingerprint, asdict(split), length])


def read_statistics(folder: Path) -> dict[str, Statistics]:
    """Return the statistics of each side of a packed folder."""
    content = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
    return {side: Statistics(**{_ATTRIBUTES[key]: value for key, value in content[side].items()}) for side in SIDES}


def _pack_into(draft: Path, source: Source, tokenizer: Tokenizer, split: Split, length: int) -> None:
    packers = {side: Packer(draft / f"{side}.arrow", length, tokenizer) for side in SIDES}
    empty = 0
    for texts in _batches(_with_progress(source.unchanged_documents(), source)):
        kept = [text for text in texts if text.strip()]
        empty += len(texts) - len(kept)
        for text, ids in zip(kept, tokenizer.encode_batch(kept), strict=True):
            packers[split.side(text)].add(ids, len(text.encode()))
    if empty:
        notice(f"{empty:,} documents without text are left out")
    statistics = {side: packer.finish() for side, packer in packers.items()}
    _check_lengths(statistics, length, split, source)
    content = {
        side: {key: getattr(numbers, name) for key, name in _ATTRIBUTES.items()} for side, numbers in statistics.items()
    }
    (draft / "statistics.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    write_checksums(draft)


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Group documents by their characters: few calls of the tokenizer for short ones, little memory for long ones."""
    batch: list[str] = []
    size = 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _with_progress(documents: Iterable[str], source: Source) -> Iterator[str]:
    if not sys.stderr.isatty():
        yield from documents
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(TextColumn("tokenizing"), *columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(documents, total=source.num_documents())


def _check_lengths(statistics: dict[str, Statistics], length: int, split: Split, source: Source) -> None:
    if sum(numbers.documents for numbers in statistics.values()) == 1 and source.single_document_remedy is not None:
        raise ValueError(f"all text is one document, and one side has none: {source.single_document_remedy}")
    remedies = {
        "train": "use a smaller length or more text",
        "val": f"use a larger val_fraction (now {split.val_fraction}), a smaller length, or more different documents",
    }
    for side, numbers in statistics.items():
        if numbers.sequences == 0 and not (side == "train" and split.val_fraction == 1):
            raise ValueError(
                f"{side} has {numbers.tokens} tokens in {numbers.documents} documents, less than one sequence of "
                f"length {length}: {remedies[side]}"
            )


class Packer:
    """Concatenates encoded documents and writes complete sequences of tokens and segments as one Arrow stream.

    Args:
        path: the file to write.
        length: L, tokens per sequence.
        tokenizer: for the end-of-document id, and for the vocabulary size, which every id must be below.
    """

    def __init__(self, path: Path, length: int, tokenizer: Tokenizer) -> None:
        self._length = length
        self._eos = np.array([tokenizer.eos_id], dtype=np.int32)
        self._vocab_size = tokenizer.vocab_size
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_stream(self._file, sequence_schema(length))
        self._pending: list[NDArray[np.int32]] = []  # documents not yet written; the first may be written in part
        self._num_pending = 0
        self._document_tokens: list[int] = []
        self._document_bytes: list[int] = []
        self._num_sequences = 0

    def add(self, ids: NDArray[np.int32], num_bytes: int) -> None:
        """Append one document without its end token; `num_bytes` is the size of its text in UTF-8."""
        if len(ids) and not (ids.min() >= 0 and ids.max() < self._vocab_size):
            wrong = ids.max() if ids.min() >= 0 else ids.min()
            raise ValueError(
                f"token id {wrong} is outside [0, {self._vocab_size}): the tokenizer's vocab_size is wrong"
            )
        self._pending.append(np.concatenate([ids, self._eos]))
        self._document_tokens.append(len(ids) + 1)
        self._document_bytes.append(num_bytes)
        self._num_pending += len(ids) + 1
        if self._num_pending >= max(_TOKENS_PER_WRITE, self._length):
            self._write()

    def _write(self) -> None:
        tokens = np.concatenate(self._pending)
        number = np.repeat(np.arange(len(self._pending), dtype=np.int32), [len(ids) for ids in self._pending])
        complete = len(tokens) // self._length
        kept = complete * self._length
        segments = number[:kept].reshape(complete, self._length)
        segments = segments - segments[:, :1]
        columns = [_column(tokens[:kept], self._length), _column(segments.reshape(-1), self._length)]
        self._writer.write_batch(pa.record_batch(columns, schema=sequence_schema(self._length)))
        self._num_sequences += complete
        self._pending = _cut(tokens[kept:], number[kept:])
        self._num_pending = len(tokens) - kept

    def finish(self) -> Statistics:
        """Write what is left, close the file and return the statistics.

        Where no sequence is complete, `tokens` counts the tokens read.
        """
        if self._num_pending >= self._length:
            self._write()
        self._writer.close()
        self._file.close()
        kept = self._num_sequences * self._length
        read = sum(self._document_tokens)
        return Statistics(len(self._document_tokens), self._num_sequences, kept if kept else read, self._bytes_in(kept))

    def _bytes_in(self, kept: int) -> int:
        tokens = np.array(self._document_tokens, dtype=np.int64)
        begins = np.cumsum(tokens) - tokens
        text_tokens = np.maximum(tokens - 1, 1)  # the end token has no bytes
        share = np.clip(kept - begins, 0, text_tokens) / text_tokens
        return round(float(share @ np.array(self._document_bytes, dtype=np.float64)))


def _column(values: NDArray[np.int32], length: int) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values, type=pa.int32()), length)


def _cut(tokens: NDArray[np.int32], number: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    """Return the tokens of each document."""
    borders = np.flatnonzero(np.diff(number)) + 1
    return [document for document in np.split(tokens, borders) if len(document)]
