"""What a network has to know about the tokens: how many there are and which ids are special."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """Token ids as plain integers; everything past the data pipeline sees these and never a tokenizer.

    Attributes:
        size: number of ids, V, the special ones included; every id is in [0, size).
        mask_id: id of the mask token; no text encodes to it, unless the user chose an existing word's id.
        bos_id: id that stands before the first token of a block, ``None`` if there is none; may equal ``eos_id``.
        eos_id: id that ends each document, ``None`` if blocks do not come from documents.
    """

    size: int
    mask_id: int
    bos_id: int | None
    eos_id: int | None

    def __post_init__(self) -> None:
        for name, value in (("mask_id", self.mask_id), ("bos_id", self.bos_id), ("eos_id", self.eos_id)):
            if value is not None and not 0 <= value < self.size:
                raise ValueError(f"{name} = {value} is outside [0, {self.size}): choose an id of the vocabulary")
