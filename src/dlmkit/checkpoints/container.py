"""The file of a checkpoint: safetensors, so that nothing in it can run code, and a checksum, so that damage shows.

Tensors are stored as safetensors has them, shared ones once. Everything else (counters, settings of the optimizer,
states of parts and callbacks) is JSON in the header's metadata, with the names of the tensors in their places. The last
tensor, `checksum`, is the SHA-256 of all bytes before it. Any reader of safetensors opens the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dlmkit.checkpoints.verify import CHECKSUM_BYTES, SHARDS, check
from dlmkit.files import replacing

CHECKSUM = "checksum"
FORMAT = "dlmkit checkpoint 1"
ALIGNMENT = 8  # bytes; of the data, by spaces behind the header
PLAIN = (type(None), bool, int, float, str)

DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
"""Types of tensors and their names in safetensors."""


def write(file: Path, content: Mapping[str, Any], shards: Mapping[str, str] | None = None) -> bytes:
    """Write a checkpoint in one step and return its checksum; a failure leaves the file as it was.

    Args:
        file: where it goes.
        content: nested dictionaries, lists and tuples of tensors, numbers, texts and ``None``.
        shards: other files that belong to it, as paths from its folder, with their checksums in hexadecimal.

    Raises:
        ValueError: a value of another kind, or a disk that takes no more; one line.
    """
    packer = _Packer()
    state = json.dumps(packer.pack(content, ()))
    order = sorted(packer.tensors, key=lambda name: -packer.tensors[name].element_size())  # keeps all of them aligned
    tensors = {name: packer.tensors[name] for name in order}
    checksum = sha256()
    try:
        with replacing(file) as out:
            for chunk in _chunks(tensors, state, shards):
                out.write(chunk)
                checksum.update(chunk)
            out.write(checksum.digest())
            return checksum.digest()
    except OSError as error:
        raise ValueError(
            f"{file} could not be written ({error.strerror}), earlier checkpoints are as they were: make room, then"
            " continue with if_exists=resume"
        ) from error


def read(file: Path) -> dict[str, Any]:
    """Return the content of a checkpoint. Its tensors are mapped into memory, so that those not used are not read.

    Raises:
        ValueError: a file that is damaged, or no checkpoint; one line.
    """
    check(file)
    return read_unverified(file)


def read_unverified(file: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, or of one of its shards, that has been verified; see `read`.

    Raises:
        ValueError: a file whose header is damaged, or no checkpoint.
    """
    return _open(file, lambda tensors: _cached(tensors.get_tensor))


def read_without_tensors(file: Path) -> dict[str, Any]:
    """Return the content of a checkpoint with ``None`` for every tensor, from its first bytes alone: quick, unverified.

    Raises:
        ValueError: a file whose header is damaged, or no checkpoint.
    """
    return _open(file, lambda tensors: lambda name: None)


def _open(file: Path, reader: Callable[[Any], Callable[[str], Any]]) -> dict[str, Any]:
    try:
        with safe_open(file, framework="pt") as tensors:
            metadata = tensors.metadata()
            if metadata["format"] != FORMAT:
                raise ValueError
            content: dict[str, Any] = _unpack(json.loads(metadata["state"]), reader(tensors))
            if not isinstance(content, dict):
                raise TypeError
            return content
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is no checkpoint of this version of dlmkit: name another one") from error


class _Packer:
    """Turns nested content into JSON, and collects its tensors by name."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.names: dict[tuple[Any, ...], str] = {}

    def pack(self, value: Any, path: tuple[str, ...]) -> Any:
        """Return what json.dumps takes; dictionaries and tuples are marked, since JSON has neither in full."""
        if type(value) in PLAIN:
            return value
        if isinstance(value, Tensor):
            return {"tensor": self._name(value, path)}
        if isinstance(value, Mapping):
            return {"dict": [[self.pack(key, path), self.pack(one, (*path, str(key)))] for key, one in value.items()]}
        if type(value) in (list, tuple, torch.Size):
            packed = [self.pack(one, (*path, str(index))) for index, one in enumerate(value)]
            return packed if type(value) is list else {"tuple": packed}
        raise ValueError(
            f"the checkpoint's {'.'.join(path)} is a {type(value).__name__}, which is not stored: return tensors,"
            " numbers, texts, None, and lists, tuples and dictionaries of them from state_dict"
        )

    def _name(self, tensor: Tensor, path: tuple[str, ...]) -> str:
        if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.dtype not in DTYPES:
            raise ValueError(
                f"the checkpoint's {'.'.join(path)} is a {type(tensor).__name__} of {tensor.dtype}, which is not"
                " stored: return plain tensors from state_dict, and leave callbacks=ema out of a sharded network's run"
            )
        place = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset())
        key = (*place, tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and key in self.names:
            return self.names[key]  # tied weights
        name = "/".join(path)
        while name in self.tensors or name == CHECKSUM:
            name += "_"
        self.tensors[name] = tensor
        self.names[key] = name
        return name


def _unpack(node: Any, tensor: Callable[[str], Any]) -> Any:
    if isinstance(node, list):
        return [_unpack(one, tensor) for one in node]
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensor(value)
    if kind == "tuple":
        return tuple(_unpack(one, tensor) for one in value)
    if kind == "dict":
        return {_unpack(key, tensor): _unpack(one, tensor) for key, one in value}
    raise ValueError


def _cached(get: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
    """Return `get` with one tensor for each name, so that tied weights are tied again."""
    known: dict[str, Tensor] = {}

    def tensor(name: str) -> Tensor:
        if name not in known:
            known[name] = get(name)
        return known[name]

    return tensor


def _header(tensors: Mapping[str, Tensor], state: str, shards: Mapping[str, str] | None) -> bytes:
    """Return the first bytes of the file: their number, then names, types, shapes and places of the tensors."""
    metadata = {"format": FORMAT, "state": state}
    if shards is not None:
        metadata[SHARDS] = json.dumps(dict(shards))
    entries: dict[str, Any] = {"__metadata__": metadata}
    place = 0
    for name, tensor in tensors.items():
        end = place + tensor.numel() * tensor.element_size()
        shape = list(tensor.shape)
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": shape, "data_offsets": [place, end]}
        place = end
    offsets = [place, place + CHECKSUM_BYTES]
    entries[CHECKSUM] = {"dtype": DTYPES[torch.uint8], "shape": [CHECKSUM_BYTES], "data_offsets": offsets}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    return len(header).to_bytes(8, "little") + header


def _chunks(tensors: Mapping[str, Tensor], state: str, shards: Mapping[str, str] | None) -> Iterator[memoryview]:
    """Yield the bytes of the file but for the checksum's, one tensor in memory at a time."""
    yield memoryview(_header(tensors, state, shards))
    for tensor in tensors.values():
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
