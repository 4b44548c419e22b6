"""Checkpoints in shards: each process writes the pieces that it holds, and a sharded network is never gathered.

A checkpoint is then the file `NAME.ckpt`, which names its shards and holds all the rest, and the folder
`NAME.shards-HEX` beside it with a file of each process; all are files of `container`, so that nothing in them can run
code and damage shows. The shards come first and the file that names them last, in one step: a kill leaves the
checkpoint before. torch.distributed.checkpoint divides the work and fits the pieces to another number of processes.
"""

from __future__ import annotations

import glob
import math
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.tensor import DTensor

from dlmkit.checkpoints.container import read, read_unverified
from dlmkit.checkpoints.shard_storage import SHARDED, ShardedTensor, ShardReader, ShardWriter
from dlmkit.checkpoints.verify import shards_of

SHARDED_PARTS = ("state_dict", "optimizer_states")
"""Entries of a checkpoint that may hold sharded tensors."""


def save(file: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint in shards; called on all processes at once, with the same `file`.

    Args:
        file: of the checkpoint; one that is there is replaced in one step.
        content: as `container.write` takes, with sharded tensors in `SHARDED_PARTS`; the rest is that of process 0.

    Raises:
        ValueError: a value that is not stored, or a disk that takes no more, on any process.
    """
    sharded = {path: value for path, value in _leaves(content) if isinstance(value, DTensor)}
    for path in sharded:
        if path[0] not in SHARDED_PARTS:
            raise ValueError(
                f"the checkpoint's {'.'.join(map(str, path))} is in shards, which is not stored: leave callbacks=ema"
                " out of a sharded network's run"
            )
    earlier = _folders_of(file)
    folder = _agreed(f"{file.stem}.shards-{uuid.uuid4().hex}")
    named = {"/".join(map(str, path)): value for path, value in sharded.items()}
    rest = _without(content, set(sharded))
    writer = ShardWriter(file, f"{folder}/{_rank():05d}.safetensors", rest, dict(zip(named, sharded, strict=True)))
    try:
        dcp.save(named, storage_writer=writer, planner=DefaultSavePlanner(flatten_state_dict=False))
    except (CheckpointException, OSError, ValueError) as error:
        if _rank() == 0:
            shutil.rmtree(file.parent / folder, ignore_errors=True)
        raise ValueError(_reason(file, error)) from error
    if _rank() == 0:
        for old in earlier:
            shutil.rmtree(old, ignore_errors=True)


def _reason(file: Path, error: BaseException) -> str:
    causes = [cause for cause, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
    told = [str(cause) for cause in causes if isinstance(cause, ValueError)]
    return told[0] if told else f"{file} could not be written ({'; '.join(map(str, causes))}): make room, and continue"


def load(file: Path, targets: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a checkpoint in shards, its sharded tensors read into the ones at the same places.

    Each process reads the pieces that it needs. Called on all processes at once; the file must have been verified.

    Args:
        file: of the checkpoint.
        targets: the entries of `SHARDED_PARTS`, with tensors, sharded or not, that are overwritten.

    Raises:
        ValueError: a file that is no such checkpoint, or tensors of other shapes.
    """
    content = read_unverified(file)
    tensors = _sharded_tensors(content, file)
    own = {path: value for path, value in _leaves(targets) if isinstance(value, Tensor)}
    wanted = {one.name: own[one.path] for one in tensors if one.path in own}
    for one in tensors:
        if one.path in own and tuple(own[one.path].shape) != one.shape:
            raise ValueError(
                f"{file} has {one.name} of shape {one.shape}, this run's has {tuple(own[one.path].shape)}: use the"
                " same backbone sizes and tokenizer"
            )
    _read_into(wanted, file, tensors, alone=False)
    for one in tensors:
        if one.path in own:
            _insert(content, one.path, wanted[one.name])
    return content


def read_whole(file: Path) -> dict[str, Any]:
    """Return the content of a checkpoint in one file or in shards, verified, with whole tensors.

    Optimizer states of shards, which are named by parameter, are numbered as a plain optimizer does.

    Raises:
        ValueError: a file, or a shard, that is damaged, or no checkpoint; one line.
    """
    content = read(file)
    if not shards_of(file):
        return content
    tensors = _sharded_tensors(content, file)
    whole = {one.name: torch.empty(one.shape, dtype=one.torch_dtype) for one in tensors}
    _read_into(whole, file, tensors, alone=True)
    for one in tensors:
        _insert(content, one.path, whole[one.name])
    content["optimizer_states"] = [numbered(state) for state in content["optimizer_states"]]
    return content


def _read_into(targets: dict[str, Any], file: Path, tensors: list[ShardedTensor], alone: bool) -> None:
    """Read sharded tensors into those of the same names, on all processes at once or on this one alone."""
    planner = DefaultLoadPlanner(flatten_state_dict=False)
    try:
        dcp.load(targets, storage_reader=ShardReader(file.parent, tensors), planner=planner, no_dist=alone)
    except (CheckpointException, RuntimeError) as error:
        raise ValueError(f"{file} is no checkpoint of this version of dlmkit: its shards do not fit it") from error


def remove(file: Path) -> None:
    """Delete a checkpoint with its shards."""
    folders = _folders_of(file)
    file.unlink(missing_ok=True)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def numbered(state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state with its parameters numbered by their place in the groups, as torch does."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    number = {name: index for index, name in enumerate(names)}
    groups = [{**group, "params": [number[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {number[name]: value for name, value in state["state"].items()}, "param_groups": groups}


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _agreed(text: str) -> str:
    """Return process 0's text on all processes."""
    texts = [text]
    if dist.is_initialized():
        dist.broadcast_object_list(texts)
    return texts[0]


def _folders_of(file: Path) -> list[Path]:
    """Return the folders with shards that belong to a checkpoint, or to an earlier one in its place."""
    return sorted(file.parent.glob(f"{glob.escape(file.stem)}.shards-*"))


def _sharded_tensors(content: dict[str, Any], file: Path) -> list[ShardedTensor]:
    """Take the list of sharded tensors out of a checkpoint's content."""
    listed = shards_of(file)
    try:
        tensors = [ShardedTensor.from_plain(plain) for plain in content.pop(SHARDED)]
        for one in tensors:
            covered = sum(math.prod(piece.sizes) for piece in one.pieces)
            if covered != math.prod(one.shape) or any(piece.file not in listed for piece in one.pieces):
                raise ValueError
            torch.empty(0, dtype=one.torch_dtype)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no checkpoint of this version of dlmkit: name another one") from error
    return tensors


def _leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Give everything in nested dictionaries, lists and tuples that is none of them, with its place."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _leaves(value, (*path, index))
    else:
        yield path, node


def _without(content: Mapping[str, Any], paths: set[tuple[Any, ...]]) -> dict[str, Any]:
    """Return nested content without what is at some places, all of them in dictionaries."""

    def copied(node: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(node, Mapping):
            left = {key: value for key, value in node.items() if (*path, key) not in paths}
            return {key: copied(value, (*path, key)) for key, value in left.items()}
        if isinstance(node, list):
            return [copied(value, (*path, index)) for index, value in enumerate(node)]
        return node

    return {key: copied(value, (key,)) for key, value in content.items()}


def _insert(content: Any, path: tuple[Any, ...], value: Any) -> None:
    *outer, last = path
    for key in outer:
        content = content[key]
    content[last] = value
