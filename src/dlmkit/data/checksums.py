"""Checksums of cached files, so that damage on the disk is found when a file is opened, and not trained on.

A file has a CRC-32 for each chunk of 16 MiB. One of at most 1 GiB is read completely when it is opened, which takes
about a second; of a larger one the size, the first and the last chunk and a random sample are checked, 1 GiB in all, so
that damage to one chunk of N is found in an opening with probability 64 / N.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from dlmkit.files import write_json, write_text
from dlmkit.notices import notice

CHUNK = 16 * 2**20
"""Bytes that one checksum is of."""

NUM_CHECKED = 64
"""Chunks of a file that are read when it is opened."""

FILE = "checksums.json"
SIDECAR = ".crc32"


@dataclass(frozen=True)
class Checksums:
    """What a file should hold.

    Attributes:
        size: bytes.
        crc32: of each chunk, in order.
    """

    size: int
    crc32: tuple[int, ...]


def checksums_of(path: Path) -> Checksums:
    """Return the checksums of a file as it is."""
    with path.open("rb") as file:
        chunks = tuple(zlib.crc32(chunk) for chunk in iter(lambda: file.read(CHUNK), b""))
    return Checksums(path.stat().st_size, chunks)


def damage_to(path: Path, expected: Checksums) -> str | None:
    """Return what is wrong with a file, such as "train.arrow has 10 bytes instead of 20", or ``None``."""
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    if size != expected.size:
        return f"{path.name} has {size:,} bytes instead of {expected.size:,}"
    with path.open("rb") as file:
        for index in _checked(len(expected.crc32)):
            file.seek(index * CHUNK)
            if zlib.crc32(file.read(CHUNK)) != expected.crc32[index]:
                return f"{path.name} differs from what was written, near byte {index * CHUNK:,}"
    return None


def _checked(num_chunks: int) -> Iterable[int]:
    """Return the chunks that are read when a file is opened."""
    if num_chunks <= NUM_CHECKED:
        return range(num_chunks)
    middle = random.SystemRandom().sample(range(1, num_chunks - 1), NUM_CHECKED - 2)
    return [0, *sorted(middle), num_chunks - 1]


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files of a folder into it."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != FILE)
    write_json(folder / FILE, {path.name: asdict(checksums_of(path)) for path in files})


def damage_in(folder: Path) -> str | None:
    """Return what is wrong with a folder that has checksums, or ``None``."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        expected = {
            str(name): Checksums(int(one["size"]), tuple(map(int, one["crc32"]))) for name, one in content.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{FILE} is damaged"
    found = (damage_to(folder / name, one) for name, one in expected.items())
    return next((one for one in found if one is not None), None)


def write_cached(path: Path, text: str) -> None:
    """Write a text file of the cache, with its checksum beside it."""
    write_text(path, text)
    write_json(path.with_name(path.name + SIDECAR), asdict(checksums_of(path)))


def read_cached(path: Path) -> str | None:
    """Return a JSON file of the cache, or ``None`` where it is not there or damaged, which is said.

    One without a checksum, of an earlier version, is damaged where it is not JSON.
    """
    if not path.is_file():
        return None
    sidecar = path.with_name(path.name + SIDECAR)
    try:
        if sidecar.is_file():
            content = json.loads(sidecar.read_text(encoding="utf-8"))
            damage = damage_to(path, Checksums(content["size"], tuple(content["crc32"])))
        else:
            damage = None
        text = path.read_text(encoding="utf-8")
        json.loads(text)
    except (ValueError, KeyError, TypeError):
        damage = f"{path.name} is damaged"
    if damage is None:
        return text
    notice(f"{damage}: the cache in {path.parent} is rebuilt")
    return None
