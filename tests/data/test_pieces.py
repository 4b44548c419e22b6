"""The text of one token: a part of a character shows as bytes, and the texts of whole characters join to the text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from test_tokenizers import MAKERS, fitted_bpe, save_pretrained

from dlmkit.data.tokenizers import Tokenizer
from dlmkit.data.tokenizers.base import EOS_TEXT, MASK_TEXT
from dlmkit.data.tokenizers.bytes import Bytes
from dlmkit.data.tokenizers.huggingface import HuggingFace
from dlmkit.data.tokenizers.pieces import BYTE_OF, spelled_bytes

BYTE_LEVEL: dict[str, Callable[[Path], Tokenizer]] = {
    "bytes": lambda folder: Bytes(),
    "bpe": fitted_bpe,
    "huggingface": lambda folder: HuggingFace(str(save_pretrained(folder / "hf"))),
}


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_a_part_of_a_character_is_escaped(name: str, tmp_path: Path) -> None:
    tokenizer = BYTE_LEVEL[name](tmp_path)
    assert [tokenizer.piece(i) for i in tokenizer.encode("\u2019")] == ["\\xe2", "\\x80", "\\x99"]


@pytest.mark.parametrize("name", MAKERS)
def test_pieces_join_to_the_text(name: str, tmp_path: Path) -> None:
    tokenizer = MAKERS[name](tmp_path)
    text = "the evening  and"
    assert "".join(map(tokenizer.piece, tokenizer.encode(text))).lstrip() == text
    assert (tokenizer.piece(tokenizer.mask_id), tokenizer.piece(tokenizer.eos_id)) == (
        MASK_TEXT,
        tokenizer.decode([tokenizer.eos_id]),
    )
    assert tokenizer.piece(tokenizer.eos_id) == EOS_TEXT


def test_every_id_has_a_piece(tmp_path: Path) -> None:
    for make in BYTE_LEVEL.values():
        tokenizer = make(tmp_path)
        pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
        assert not [piece for piece in pieces if "\ufffd" in piece]


def test_spellings() -> None:
    assert sorted(BYTE_OF.values()) == list(range(256))
    assert spelled_bytes("<0xE2>") == b"\xe2"
    assert spelled_bytes("\u0120a") == b" a"
    assert spelled_bytes("\u2581a") is None
