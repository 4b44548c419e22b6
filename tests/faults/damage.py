"""Ways in which a file is damaged."""

from __future__ import annotations

import pickle
from pathlib import Path

PAYLOAD = Path("payload-ran")


def flip_bit(file: Path, place: int, bit: int = 0) -> None:
    """Turn one bit of a file over; a negative place counts from the end."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


def zero(file: Path, place: int, size: int = 4096) -> None:
    """Replace bytes by zeros."""
    content = bytearray(file.read_bytes())
    content[place : place + size] = bytes(len(content[place : place + size]))
    file.write_bytes(content)


def truncate(file: Path, size: int) -> None:
    """Keep the first bytes alone."""
    file.write_bytes(file.read_bytes()[:size])


class Payload:
    """Its pickle creates PAYLOAD when it is loaded."""

    def __reduce__(self):
        return PAYLOAD.touch, ()


def pickled() -> bytes:
    return pickle.dumps(Payload())
