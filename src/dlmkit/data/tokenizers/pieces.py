"""The text of one token, also where it is a part of a character.

Byte-level vocabularies spell each byte as a letter (GPT-2), or spell a lone byte ``<0xE2>`` (byte fallback).
"""

from __future__ import annotations

import re

LONE_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + k): byte for k, byte in enumerate(_OTHERS)}
"""The byte behind each letter of a byte-level vocabulary: printable Latin-1 is itself, the rest comes from 256 on."""


def escaped(raw: bytes) -> str:
    r"""Return the text of bytes, with what is no whole UTF-8 character as escapes, such as ``\xe2``."""
    return raw.decode("utf-8", errors="backslashreplace")


def spelled_bytes(spelling: str) -> bytes | None:
    """Return the bytes of a token as a byte-level vocabulary spells it; ``None`` for another spelling."""
    if (lone := LONE_BYTE.fullmatch(spelling)) is not None:
        return bytes([int(lone[1], 16)])
    if all(letter in BYTE_OF for letter in spelling):
        return bytes(BYTE_OF[letter] for letter in spelling)
    return None
