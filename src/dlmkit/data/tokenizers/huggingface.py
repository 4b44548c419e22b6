"""The tokenizer of a pretrained model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dlmkit.data.files import digest, nearest
from dlmkit.data.tokenizers.base import Tokenizer
from dlmkit.data.tokenizers.damaged import damage_explained
from dlmkit.ranges import Range, checked

TokenId = Annotated[int, Range("[0, 2147483647]", "use an id of the tokenizer, or new")]


class HuggingFace(Tokenizer):
    """Any Hugging Face tokenizer with a mask token.

    Special tokens that are written in the text ("<|endoftext|>") are encoded as plain text, never to their ids.

    Args:
        name: name on the hub or a local folder.
        mask: ``new`` for one more id after the vocabulary, or an existing token or id.
        eos: the token that ends documents; ``None`` for the tokenizer's own.
    """

    @checked
    def __init__(self, name: str, mask: str | TokenId = "new", eos: str | None = None) -> None:
        self.pretrained = _load(name)
        self._eos = eos
        self._mask_id = _find_mask(self.pretrained, name, mask)
        self._eos_id = _find_eos(self.pretrained, name, eos)
        if self._mask_id == self._eos_id:
            raise ValueError(f"tokenizer.mask = {mask!r} is also the end of documents: use another token, or new")

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`."""
        ids: list[int] = self._encode([text])[0]
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Return the ids of each text, int32."""
        return [np.asarray(ids, dtype=np.int32) for ids in self._encode(list(texts))]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        # verbose=False: no warning about documents longer than the model's context, which packing cuts
        encoded = self.pretrained(
            texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def decode_ordinary(self, ids: list[int], first: bool) -> str:
        """Return the text; a word after a special token keeps the space before it."""
        if first:
            return self._decode(ids)
        # SentencePiece tokenizers drop the first space of what they decode: decode after an anchor and cut that off.
        return self._decode([self._eos_id, *ids])[len(self._decode([self._eos_id])) :]

    def _decode(self, ids: list[int]) -> str:
        text = self.pretrained.decode(ids, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def spelling(self, token_id: int) -> str | None:
        """Return the token as its vocabulary has it."""
        spelling = self.pretrained.convert_ids_to_tokens(token_id) if token_id < len(self.pretrained) else None
        return spelling if isinstance(spelling, str) else None

    @property
    def vocab_size(self) -> int:
        """Number of ids, a new mask included."""
        return max(len(self.pretrained), self._mask_id + 1)

    @property
    def mask_id(self) -> int:
        """Id of the mask token."""
        return self._mask_id

    @property
    def eos_id(self) -> int:
        """Id that ends a document."""
        return self._eos_id

    @property
    def bos_id(self) -> int:
        """The tokenizer's own begin-of-sequence id, or the one that ends documents."""
        bos: int | None = self.pretrained.bos_token_id
        return self._eos_id if bos is None else bos

    @property
    def pad_id(self) -> int | None:
        """The tokenizer's own id for padding."""
        pad: int | None = self.pretrained.pad_token_id
        return pad

    @property
    def fingerprint(self) -> str:
        """16 hex digits of what determines the ids: the vocabulary, the rules and the special ids, not the name."""
        return digest([_definition(self.pretrained), self._mask_id, self._eos_id])

    def state(self) -> dict[str, Any]:
        """Return the special tokens; transformers saves the vocabulary in the same folder.

        The mask is its id: in an exported folder a new one is a token of the vocabulary, not one more.
        """
        return {"mask": self._mask_id, "eos": self._eos}

    @classmethod
    def restore(cls, state: dict[str, Any], folder: Path) -> HuggingFace:
        """Rebuild from the folder; the mask is an id, or in folders of dlmkit 0.1 what was typed."""
        mask, eos = state["mask"], state["eos"]
        tokenizer = cls(str(folder), mask if isinstance(mask, str) else "new", eos)
        return tokenizer if mask in (tokenizer.mask_id, "new") else cls(str(folder), mask, eos)

    def for_transformers(self) -> PreTrainedTokenizerBase:
        """Return a copy of the tokenizer."""
        return copy.deepcopy(self.pretrained)

    def save(self, folder: Path) -> None:
        """Write the tokenizer into `folder`; transformers can load it from there too."""
        self.pretrained.save_pretrained(str(folder))
        super().save(folder)


def _load(name: str) -> PreTrainedTokenizerBase:
    local = Path(name).expanduser()
    if name.startswith((".", "/", "~")) and not local.is_dir():
        raise ValueError(f"tokenizer.name = {name!r} is not a folder: {nearest(name)}")
    try:
        with damage_explained(
            f"tokenizer.name = {name!r} holds no tokenizer that can be read: save or download it again"
        ):
            tokenizer = AutoTokenizer.from_pretrained(str(local) if local.is_dir() else name, trust_remote_code=False)
    except OSError as error:
        raise ValueError(
            f"tokenizer.name = {name!r} is neither a folder with a tokenizer nor reachable on the hub: check the name, "
            f"or run `hf download {name} --local-dir DIR` where there is network and set tokenizer.name=DIR"
        ) from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def _find_mask(tokenizer: PreTrainedTokenizerBase, name: str, mask: str | int) -> int:
    if mask == "new":
        return len(tokenizer)
    if isinstance(mask, int):
        if not 0 <= mask < len(tokenizer):
            raise ValueError(f"tokenizer.mask = {mask} is outside [0, {len(tokenizer)}): use an id of {name!r}, or new")
        return mask
    return _find_token(tokenizer, name, "mask", mask, "or new for one more id")


def _find_eos(tokenizer: PreTrainedTokenizerBase, name: str, eos: str | None) -> int:
    if eos is not None:
        return _find_token(tokenizer, name, "eos", eos, "or null for the tokenizer's own")
    own: int | None = tokenizer.eos_token_id
    if own is None:
        raise ValueError(f"{name!r} has no end-of-text token: set tokenizer.eos to one of its tokens, such as '[SEP]'")
    return own


def _find_token(tokenizer: PreTrainedTokenizerBase, name: str, key: str, token: str, otherwise: str) -> int:
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if token not in vocabulary:
        raise ValueError(f"tokenizer.{key} = {token!r} is not a token of {name!r}: use one of its tokens, {otherwise}")
    return vocabulary[token]


def _definition(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the fast tokenizer's full definition, or the vocabulary where there is no fast one."""
    if tokenizer.is_fast:
        definition: str = tokenizer.backend_tokenizer.to_str()
        return definition
    return digest(tokenizer.get_vocab())
