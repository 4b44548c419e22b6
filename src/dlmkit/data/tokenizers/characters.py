"""Unicode characters as tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlmkit.data.checksums import read_cached, write_cached
from dlmkit.data.files import writable
from dlmkit.data.tokenizers.base import Tokenizer

UNKNOWN_TEXT = "\ufffd"


class Characters(Tokenizer):
    """The characters of the training documents in code-point order, then unknown, end of document and mask.

    Other characters are encoded as the unknown token, so only text over the learned alphabet round-trips.
    """

    def __init__(self) -> None:
        self._codes: NDArray[np.uint32] | None = None

    def fit(self, documents: Callable[[], Iterable[str]], cache_dir: Path) -> None:
        """Learn the alphabet, or read it from the cache."""
        if self._codes is not None:
            return
        path = cache_dir / "characters.json"
        content = read_cached(path)
        if content is None:
            writable(cache_dir)
            alphabet: set[str] = set()
            for text in documents():
                alphabet.update(text)
            content = json.dumps("".join(sorted(alphabet)))
            write_cached(path, content)
        self._set_alphabet(json.loads(content))

    def _set_alphabet(self, alphabet: str) -> None:
        self._codes = _code_points(alphabet)

    @property
    def codes(self) -> NDArray[np.uint32]:
        """The alphabet as sorted code points."""
        assert self._codes is not None, "fit() comes first"
        return self._codes

    def encode(self, text: str) -> list[int]:
        """Return one id per character."""
        ids: list[int] = self._ids(text).tolist()
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Return one id per character of each text, int32."""
        return [self._ids(text) for text in texts]

    def _ids(self, text: str) -> NDArray[np.int32]:
        wanted = _code_points(text)
        positions = np.searchsorted(self.codes, wanted)
        known = positions < len(self.codes)
        known[known] = self.codes[positions[known]] == wanted[known]
        return np.where(known, positions, self.unknown_id).astype(np.int32)

    def decode_ordinary(self, ids: list[int], first: bool) -> str:
        """Return the characters; the unknown one shows as U+FFFD."""
        return "".join(UNKNOWN_TEXT if i == self.unknown_id else chr(self.codes[i]) for i in ids)

    @property
    def unknown_id(self) -> int:
        """Id of characters outside the alphabet."""
        return len(self.codes)

    @property
    def eos_id(self) -> int:
        """Id that ends a document."""
        return len(self.codes) + 1

    @property
    def mask_id(self) -> int:
        """Id of the mask token."""
        return len(self.codes) + 2

    @property
    def vocab_size(self) -> int:
        """Size of the alphabet and three special ids."""
        return len(self.codes) + 3

    def state(self) -> dict[str, Any]:
        """Return the alphabet."""
        return {"alphabet": "".join(map(chr, self.codes))}

    @classmethod
    def restore(cls, state: dict[str, Any], folder: Path) -> Characters:
        """Rebuild from the alphabet."""
        tokenizer = cls()
        tokenizer._set_alphabet(state["alphabet"])
        return tokenizer


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
