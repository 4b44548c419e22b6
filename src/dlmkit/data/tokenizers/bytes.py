"""UTF-8 bytes as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlmkit.data.tokenizers.base import Tokenizer


class Bytes(Tokenizer):
    """The 256 byte values, then the end of a document (256) and the mask (257); nothing is learned."""

    vocab_size = 258
    eos_id = 256
    mask_id = 257

    def encode(self, text: str) -> list[int]:
        """Return the UTF-8 bytes of `text`."""
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Return the UTF-8 bytes of each text as int32 arrays."""
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32) for text in texts]

    def decode_ordinary(self, ids: list[int], first: bool) -> str:
        """Return the text; bytes that are not UTF-8, as samples may have, show as U+FFFD."""
        return bytes(ids).decode(errors="replace")

    def spelling(self, token_id: int) -> str:
        """Return ``<0xE2>`` for byte 0xE2."""
        return f"<0x{token_id:02X}>"

    def state(self) -> dict[str, Any]:
        """Return an empty state: all byte tokenizers are equal."""
        return {}

    @classmethod
    def restore(cls, state: dict[str, Any], folder: Path) -> Bytes:
        """Return a byte tokenizer."""
        return cls()
