"""The vocabulary as a network sees it: the number of ids, and which of them are special."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """Token ids as plain integers; everything after the data pipeline takes these and never a tokenizer.

    Attributes:
        size: number of ids, V, the special ones included; every id is in [0, size).
        mask_id: id of the mask token; no text encodes to it, unless the user chose the id of an existing token.
        bos_id: id before the first token of a sequence, ``None`` if there is none; may equal ``eos_id``.
        eos_id: id that ends each document, ``None`` if sequences are not made of documents.

    Raises:
        ValueError: a special id outside [0, size).
    """

    size: int
    mask_id: int
    bos_id: int | None
    eos_id: int | None

    def __post_init__(self) -> None:
        for name, value in (("mask_id", self.mask_id), ("bos_id", self.bos_id), ("eos_id", self.eos_id)):
            if value is not None and not 0 <= value < self.size:
                raise ValueError(f"{name} = {value} is outside [0, {self.size}): choose an id of the vocabulary")
