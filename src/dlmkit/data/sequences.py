"""Packed sequences of L tokens, in memory or on disk, and the dataset that makes batches of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dlmkit.types import Batch

PADDING = -1  # index of a sequence that only fills a batch: none of its tokens is scored


def sequence_schema(length: int) -> pa.Schema:
    """Return the schema of a packed file; ``datasets.Dataset.from_file`` opens such a file (an Arrow stream) too."""
    column = pa.list_(pa.field("item", pa.int32(), nullable=False), length)
    return pa.schema([pa.field("tokens", column), pa.field("segments", column)])


class Sequences(ABC):
    """N packed sequences of L tokens each, read by index."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def tokens(self, indices: Sequence[int]) -> NDArray[np.int32]:
        """Return the tokens of the sequences `indices`, int32 [B, L]."""

    @abstractmethod
    def segments(self, indices: Sequence[int]) -> NDArray[np.int32]:
        """Return the document index of each token within its sequence, int32 [B, L], from 0 and non-decreasing."""

    def scored(self, indices: Sequence[int]) -> NDArray[np.bool_]:
        """Return the loss mask, bool [B, L]: the tokens that noise may touch; all of them unless overridden."""
        return np.ones(self.tokens(indices).shape, dtype=np.bool_)


class MemorySequences(Sequences):
    """Sequences in memory, each a document of its own.

    Args:
        tokens: int32 [N, L].
        scored: the loss mask, bool [N, L]; ``None``: every token is scored.
    """

    def __init__(self, tokens: NDArray[np.int32], scored: NDArray[np.bool_] | None = None) -> None:
        self._tokens = tokens
        self._scored = scored

    def __len__(self) -> int:
        return len(self._tokens)

    def tokens(self, indices: Sequence[int]) -> NDArray[np.int32]:
        """Return the tokens of the sequences `indices`, int32 [B, L]."""
        return self._tokens[np.asarray(indices)]

    def segments(self, indices: Sequence[int]) -> NDArray[np.int32]:
        """Return zeros, int32 [B, L]: a sequence is one document."""
        return np.zeros_like(self.tokens(indices))

    def scored(self, indices: Sequence[int]) -> NDArray[np.bool_]:
        """Return the loss mask, bool [B, L]."""
        return super().scored(indices) if self._scored is None else self._scored[np.asarray(indices)]


class ArrowSequences(Sequences):
    """Sequences of a packed file, memory-mapped: a corpus larger than memory can be opened at no cost.

    Args:
        path: an Arrow stream with the columns of :func:`sequence_schema`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        self._tokens = _views(table.column("tokens"))
        self._segments = _views(table.column("segments"))
        # sequence i is row i - starts[c] of chunk c, the last chunk that starts at or before i
        self._starts = np.cumsum([0] + [len(view) for view in self._tokens])

    def __reduce__(self) -> tuple[type[ArrowSequences], tuple[Path]]:
        return type(self), (self._path,)  # a worker process maps the file again instead of receiving a copy of it

    def __len__(self) -> int:
        return int(self._starts[-1])

    def tokens(self, indices: Sequence[int]) -> NDArray[np.int32]:
        """Return the tokens of the sequences `indices`, int32 [B, L]."""
        return self._gather(self._tokens, indices)

    def segments(self, indices: Sequence[int]) -> NDArray[np.int32]:
        """Return the document index of each token within its sequence, int32 [B, L], from 0 and non-decreasing."""
        return self._gather(self._segments, indices)

    def _gather(self, views: list[NDArray[np.int32]], indices: Sequence[int]) -> NDArray[np.int32]:
        chunks = np.searchsorted(self._starts, indices, side="right") - 1
        rows = np.asarray(indices) - self._starts[chunks]
        return np.stack([views[chunk][row] for chunk, row in zip(chunks, rows, strict=True)])


def _views(column: pa.ChunkedArray) -> list[NDArray[np.int32]]:
    length = column.type.list_size
    return [chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, length) for chunk in column.chunks]


class SequenceDataset(Dataset[Batch]):
    """Makes one batch from a list of indices; the index :data:`PADDING` gives a sequence with no scored token.

    Args:
        sequences: where the tokens come from.
        document_masking: whether batches carry segments.
    """

    def __init__(self, sequences: Sequences, document_masking: bool) -> None:
        self._sequences = sequences
        self._document_masking = document_masking

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return the batch of the sequences `indices`: tokens and segments int64 [B, L], scored bool [B, L]."""
        real = torch.tensor([index != PADDING for index in indices])
        present = [max(index, 0) for index in indices]
        tokens = _to_int64(self._sequences.tokens(present))
        scored = real[:, None] & torch.from_numpy(self._sequences.scored(present))
        segments = _to_int64(self._sequences.segments(present)) if self._document_masking else None
        return Batch(tokens, scored, segments)


def _to_int64(values: NDArray[np.int32]) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))
