"""Where torch.distributed.checkpoint writes pieces of tensors and reads them from: files of `container`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import StorageReader, StorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future
from typing_extensions import override

from dlmkit.checkpoints.container import read_unverified, write

SHARDED = "sharded"
"""Entry of the checkpoint's file: what its shards hold, as a list of `ShardedTensor`s."""


@dataclass(frozen=True)
class Piece:
    """A part of a tensor in a shard: its place in the tensor, its size, the shard's path, its name in there."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    name: str


@dataclass(frozen=True)
class ShardedTensor:
    """A tensor whose pieces are in shards: its place in the checkpoint, its shape, the name of its dtype."""

    path: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[Piece, ...]

    @property
    def name(self) -> str:
        """The place as a text."""
        return "/".join(map(str, self.path))

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype."""
        dtype = vars(torch)[self.dtype]
        if not isinstance(dtype, torch.dtype):
            raise TypeError
        return dtype

    def to_plain(self) -> list[Any]:
        """Return it as lists, for `container`."""
        pieces = [[list(piece.offsets), list(piece.sizes), piece.file, piece.name] for piece in self.pieces]
        return [list(self.path), list(self.shape), self.dtype, pieces]

    @classmethod
    def from_plain(cls, plain: Any) -> ShardedTensor:
        """Return what `to_plain` made lists of."""
        path, shape, dtype, pieces = plain
        made = [Piece(tuple(offsets), tuple(sizes), file, name) for offsets, sizes, file, name in pieces]
        return cls(tuple(path), tuple(shape), dtype, tuple(made))


class ShardWriter(StorageWriter):
    """Writes the pieces of this process into its shard; process 0 writes the file that names all shards.

    Args:
        file: of the checkpoint.
        shard: path of this process's shard from the folder of `file`.
        content: of the checkpoint, without its sharded tensors.
        paths: name of each sharded tensor -> its place in the content.
    """

    def __init__(
        self, file: Path, shard: str, content: Mapping[str, Any], paths: Mapping[str, tuple[Any, ...]]
    ) -> None:
        self.file = file
        self.shard = shard
        self.content = content
        self.paths = paths

    @override
    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    @override
    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    @override
    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    @override
    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    @override
    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        pieces = {_piece_name(item.index): planner.resolve_data(item) for item in plan.items}
        checksum = write(self.file.parent / self.shard, pieces).hex() if pieces else ""
        results = [WriteResult(item.index, 0, (self.shard, checksum)) for item in plan.items]
        return _done(results)

    @override
    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        written = {(one.index.fqn, one.index.offset): one.storage_data for each in results for one in each}
        tensors = []
        for name, path in self.paths.items():
            stored = metadata.state_dict_metadata[name]
            assert isinstance(stored, TensorStorageMetadata)
            pieces = []
            for chunk in stored.chunks:
                if chunk.sizes.numel():
                    shard = written[name, chunk.offsets][0]
                    key = _piece_name(MetadataIndex(name, chunk.offsets))
                    pieces.append(Piece(tuple(chunk.offsets), tuple(chunk.sizes), shard, key))
            dtype = str(stored.properties.dtype).removeprefix("torch.")
            tensors.append(ShardedTensor(path, tuple(stored.size), dtype, tuple(pieces)))
        write(self.file, {**self.content, SHARDED: [one.to_plain() for one in tensors]}, dict(written.values()))

    @classmethod
    @override
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False  # it is made by `save` alone


class ShardReader(StorageReader):
    """Reads pieces of tensors from shards, which are mapped into memory.

    Args:
        folder: of the checkpoint's file.
        tensors: what it says that its shards hold.
    """

    def __init__(self, folder: Path, tensors: list[ShardedTensor]) -> None:
        self.folder = folder
        self.tensors = tensors
        self.places = {(one.name, piece.offsets): piece for one in tensors for piece in one.pieces}

    @override
    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    @override
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        known: dict[str, Any] = {}
        for one in self.tensors:
            chunks = [ChunkStorageMetadata(torch.Size(p.offsets), torch.Size(p.sizes)) for p in one.pieces]
            known[one.name] = TensorStorageMetadata(TensorProperties(one.torch_dtype), torch.Size(one.shape), chunks)
        return Metadata(known)

    @override
    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    @override
    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    @override
    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @override
    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        opened: dict[str, dict[str, Any]] = {}
        for item in plan.items:
            assert item.storage_index.offset is not None
            piece = self.places[item.storage_index.fqn, tuple(item.storage_index.offset)]
            if piece.file not in opened:
                opened[piece.file] = read_unverified(self.folder / piece.file)
            source = opened[piece.file][piece.name]
            for axis, (start, size) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                source = source.narrow(axis, start, size)
            target = planner.resolve_tensor(item).detach()
            target.copy_(source)
            planner.commit_tensor(item, target)
        return _done(None)

    @classmethod
    @override
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def _piece_name(index: MetadataIndex) -> str:
    return f"{index.fqn}@{','.join(map(str, index.offset or ()))}"
