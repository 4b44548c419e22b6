"""Whether a checkpoint is whole, with all of its shards, from its bytes alone. Never imports torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

CHECKSUM_BYTES = 32
"""The last bytes of a checkpoint: the SHA-256 of those before."""

CHUNK = 2**22  # bytes
ZIP = b"PK\x03\x04"  # how files of torch.save begin
PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit

SHARDS = "shards"
"""Key of the header's metadata: JSON, path of each shard from the checkpoint's folder -> its checksum."""
SHARD_PATH = re.compile(r"[^/]+\.shards-[0-9a-f]{32}/\d{5}\.safetensors")


class Newest(NamedTuple):
    """The newest checkpoint that is whole, or ``None``, and one line on each newer one that is not."""

    file: Path | None
    damaged: list[str]


def check(file: Path) -> None:
    """Check that a checkpoint is what was written.

    Raises:
        ValueError: a pickle, which is not read since that can run code, or a file whose checksum does not fit.
    """
    if is_pickle(file):
        raise ValueError(
            f"{file} is a pickle, as dlmkit 0.1 wrote, and reading one can run code: export it with that version, or"
            " train again"
        )
    if not _is_whole(file):
        raise ValueError(
            f"{file} is damaged, or is no checkpoint: its checksum, or that of one of its shards, does not fit; name"
            " another one"
        )


def is_pickle(file: Path) -> bool:
    """Return whether a file is a pickle or the archive of one that torch.save writes."""
    with file.open("rb") as opened:
        start = opened.read(9)
    is_safetensors = start[8:] == b"{" and int.from_bytes(start[:8], "little") <= LARGEST_HEADER
    return start.startswith((ZIP, *PICKLES)) and not is_safetensors


def _is_whole(file: Path) -> bool:
    return _checksum_of(file) is not None and all(
        SHARD_PATH.fullmatch(name) and (file.parent / name).is_file() and _checksum_of(file.parent / name) == expected
        for name, expected in shards_of(file).items()
    )


def shards_of(file: Path) -> dict[str, str]:
    """Return the shards of a checkpoint, as paths from its folder, with their checksums; none for a single file."""
    with file.open("rb") as opened:
        header = opened.read(min(int.from_bytes(opened.read(8), "little"), LARGEST_HEADER))
    try:
        shards = json.loads(json.loads(header)["__metadata__"].get(SHARDS, "{}"))
        return {str(name): str(checksum) for name, checksum in shards.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # a file of somebody else, which `container` refuses


def remove_orphans(folder: Path) -> None:
    """Delete the shards in a folder that no checkpoint there names: of saves that were killed, where none runs now."""
    named = {name.partition("/")[0] for file in folder.glob("*.ckpt") for name in shards_of(file)}
    for path in folder.glob("*.shards-*"):
        if SHARD_PATH.fullmatch(f"{path.name}/00000.safetensors") and path.is_dir() and path.name not in named:
            shutil.rmtree(path)


def _checksum_of(file: Path) -> str | None:
    """Return a file's checksum, in hexadecimal, or ``None`` where its bytes have another one."""
    checksum = hashlib.sha256()
    with file.open("rb") as opened:
        left = os.fstat(opened.fileno()).st_size - CHECKSUM_BYTES
        while left > 0:
            chunk = opened.read(min(CHUNK, left))
            if not chunk:
                return None
            checksum.update(chunk)
            left -= len(chunk)
        return checksum.hexdigest() if left == 0 and opened.read() == checksum.digest() else None


def newest_whole(files: list[Path]) -> Newest:
    """Return the newest of some checkpoints that is whole.

    Raises:
        ValueError: there are some and none is whole, or the newest is a pickle.
    """
    damaged: list[str] = []
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        if is_pickle(file):
            check(file)
        if _is_whole(file):
            return Newest(file, damaged)
        damaged.append(f"{file} is damaged")
    if damaged:
        raise ValueError(f"{'; '.join(damaged)}, and no other checkpoint is left: train again with if_exists=overwrite")
    return Newest(None, [])
