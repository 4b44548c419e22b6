"""The interface of tokenizers, and loading one back from a run's folder."""

from __future__ import annotations

import importlib
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlmkit.data.files import digest
from dlmkit.data.tokenizers.pieces import escaped, spelled_bytes
from dlmkit.files import write_text
from dlmkit.trust import check_target

STATE_FILE = "dlmkit_tokenizer.json"
MASK_TEXT = "[MASK]"
EOS_TEXT = "<|eos|>"
ANCHORS = ("\n", ".", "|")
"""Texts that rarely make one token with what follows, to encode a text as it is behind another one."""
REPLACEMENT = "\ufffd"
"""What decoders show for bytes that are no whole UTF-8 character."""


class Tokenizer(ABC):
    """Text to ids and back. The mask token belongs to the vocabulary, and no text encodes to a special id."""

    def fit(self, documents: Callable[[], Iterable[str]], cache_dir: Path) -> None:  # noqa: B027 (optional hook)
        """Learn the vocabulary from the training documents; nothing by default.

        A fitted or loaded tokenizer does not change, so that a run's tokenizer can encode another corpus.

        Args:
            documents: returns an iterator over the training documents; called only where the cache has no result.
            cache_dir: a folder for results on these documents alone.
        """

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, no special token added."""

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Return the ids of each text as int32 arrays."""
        return [np.asarray(self.encode(text), dtype=np.int32) for text in texts]

    @abstractmethod
    def decode_ordinary(self, ids: list[int], first: bool) -> str:
        """Return the text of ids without special ones; `first`: whether they are at the start of the text."""

    def encode_inside(self, text: str) -> list[int]:
        """Return the ids of a text that other text stands before, no special token added.

        SentencePiece tokenizers put a space before what they encode, which has no place inside a text.
        """
        plain = self.encode(text)
        if self.decode_ordinary(plain, first=False) == text:
            return plain
        for anchor in ANCHORS:
            before, both = self.encode(anchor), self.encode(anchor + text)
            inside = both[len(before) :]
            if both[: len(before)] == before and self.decode_ordinary(inside, first=False) == text:
                return inside
        return plain  # as near as this tokenizer comes to the text

    def decode(self, ids: Sequence[int], skip_special: bool = False, first: bool = True) -> str:
        """Return the text of `ids`; the mask shows as ``[MASK]`` and the end of a document as ``<|eos|>``.

        Args:
            ids: of any kind.
            skip_special: whether special ids show as nothing.
            first: whether they are at the start of the text.
        """
        shown = {self.eos_id: EOS_TEXT, self.mask_id: MASK_TEXT}
        parts: list[str] = []
        for special, group in itertools.groupby(map(int, ids), key=shown.__contains__):
            run = list(group)
            if not special:
                parts.append(self.decode_ordinary(run, first=first and not parts))
            elif not skip_special:
                parts.extend(shown[i] for i in run)
        return "".join(parts)

    def piece(self, token_id: int) -> str:
        r"""Return the text of one token; bytes that are a part of a character are escaped, such as ``\xe2``."""
        if token_id in (self.eos_id, self.mask_id):
            return self.decode([token_id])
        text = self.decode_ordinary([token_id], first=False)
        spelling = self.spelling(token_id) if REPLACEMENT in text else None
        raw = None if spelling is None else spelled_bytes(spelling)
        return text if raw is None else escaped(raw)

    def spelling(self, token_id: int) -> str | None:
        """Return how the vocabulary spells a token, or ``None`` where it has no spelling of its own."""
        return None

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""

    @property
    @abstractmethod
    def mask_id(self) -> int:
        """Id of the mask token."""

    @property
    @abstractmethod
    def eos_id(self) -> int:
        """Id that ends a document."""

    @property
    def bos_id(self) -> int:
        """Id before the first token of a sequence; ``eos_id`` unless the tokenizer has its own."""
        return self.eos_id

    @property
    def pad_id(self) -> int | None:
        """Id that fills up what is behind a text, where the tokenizer has one."""
        return None

    @property
    def fingerprint(self) -> str:
        """16 hex digits; equal for tokenizers that encode equally."""
        return digest([type(self).__qualname__, self.state()])

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return what :meth:`restore` needs, JSON-serializable."""

    @classmethod
    @abstractmethod
    def restore(cls, state: dict[str, Any], folder: Path) -> Tokenizer:
        """Rebuild a tokenizer from its state and the folder that it was saved in."""

    def for_transformers(self) -> Any | None:
        """Return the same tokenizer as one of transformers', or ``None`` where there is no equal one."""
        return None

    def save(self, folder: Path) -> None:
        """Write the tokenizer into `folder`, for :func:`load_tokenizer`."""
        content = {"module": type(self).__module__, "class": type(self).__qualname__, "state": self.state()}
        write_text(folder / STATE_FILE, json.dumps(content))


def load_tokenizer(folder: Path, trust: Sequence[str] = ()) -> Tokenizer:
    """Load the tokenizer that :meth:`Tokenizer.save` wrote into `folder`.

    Args:
        folder: the tokenizer's folder, which somebody else may have written.
        trust: import paths of tokenizers that may be named, beside the kit's own.

    Raises:
        ValueError: no such file, a damaged one, or one that names a class that is not trusted.
    """
    path = Path(folder) / STATE_FILE
    if not path.is_file():
        raise ValueError(f"{str(folder)!r} has no {STATE_FILE}: name a folder written by a dlmkit run")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        module, name, state = content["module"], content["class"], content["state"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: take the tokenizer of another copy of the run, or train again") from error
    check_target(f"{module}.{name}", Tokenizer, trust, str(path))
    kind: type[Tokenizer] = getattr(importlib.import_module(module), name)
    return kind.restore(state, Path(folder))
