"""Byte-level BPE, learned from the training documents."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dlmkit.data.checksums import read_cached, write_cached
from dlmkit.data.files import writable
from dlmkit.data.tokenizers.base import EOS_TEXT, MASK_TEXT, Tokenizer
from dlmkit.data.tokenizers.damaged import damage_explained
from dlmkit.ranges import Range, checked

_NUM_SPECIAL = 2
_SMALLEST = 256 + _NUM_SPECIAL


class BPE(Tokenizer):
    """Byte-level byte-pair encoding (arXiv 1508.07909, on bytes as in GPT-2); any text round-trips.

    The last two ids are the end of a document and the mask. They are outside the learned vocabulary, so no text
    encodes to them.

    Args:
        vocab_size: number of ids in all: 256 bytes, the merges and the two special ids.
    """

    @checked
    def __init__(
        self,
        vocab_size: Annotated[int, Range(f"[{_SMALLEST}, 16777216]", "256 bytes, merges, eos and mask, such as 1024")],
    ) -> None:
        self._vocab_size = vocab_size
        self._model: tokenizers.Tokenizer | None = None

    def fit(self, documents: Callable[[], Iterable[str]], cache_dir: Path) -> None:
        """Learn the merges, or read them from the cache."""
        if self._model is not None:
            return
        path = cache_dir / f"bpe-{self.vocab_size}.json"
        definition = read_cached(path)
        if definition is None:
            writable(cache_dir)
            definition = _train(documents(), self.vocab_size - _NUM_SPECIAL).to_str()
            write_cached(path, definition)
        self._set_model(definition)

    def _set_model(self, definition: str) -> None:
        with damage_explained("this is no BPE tokenizer, take it from another run"):
            self._model = tokenizers.Tokenizer.from_str(definition)

    @property
    def model(self) -> tokenizers.Tokenizer:
        """The learned tokenizer, without special tokens."""
        assert self._model is not None, "fit() comes first"
        return self._model

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`."""
        ids: list[int] = self.model.encode(text).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Return the ids of each text, int32; on up to RAYON_NUM_THREADS threads."""
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in self.model.encode_batch_fast(list(texts))]

    def decode_ordinary(self, ids: list[int], first: bool) -> str:
        """Return the text; bytes that are not UTF-8, as samples may have, show as U+FFFD."""
        text: str = self.model.decode(ids)
        return text

    def spelling(self, token_id: int) -> str | None:
        """Return the token with a letter for each byte."""
        spelling: str | None = self.model.id_to_token(token_id)
        return spelling

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        return self._vocab_size

    @property
    def eos_id(self) -> int:
        """Id that ends a document."""
        return self._vocab_size - 2

    @property
    def mask_id(self) -> int:
        """Id of the mask token."""
        return self._vocab_size - 1

    def for_transformers(self) -> PreTrainedTokenizerFast:
        """Return the same vocabulary with the end of a document and the mask as special tokens, ids unchanged."""
        model = tokenizers.Tokenizer.from_str(self.model.to_str())
        model.add_special_tokens([EOS_TEXT, MASK_TEXT])
        return PreTrainedTokenizerFast(
            tokenizer_object=model, bos_token=EOS_TEXT, eos_token=EOS_TEXT, mask_token=MASK_TEXT
        )

    def state(self) -> dict[str, Any]:
        """Return the size and the learned tokenizer."""
        return {"vocab_size": self._vocab_size, "model": json.loads(self.model.to_str())}

    @classmethod
    def restore(cls, state: dict[str, Any], folder: Path) -> BPE:
        """Rebuild from the learned tokenizer."""
        tokenizer = cls(state["vocab_size"])
        tokenizer._set_model(json.dumps(state["model"]))
        return tokenizer


def _train(documents: Iterable[str], size: int) -> tokenizers.Tokenizer:
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(documents, trainer)
    if model.get_vocab_size() < size:
        learned = model.get_vocab_size() + _NUM_SPECIAL
        raise ValueError(
            f"tokenizer.vocab_size = {size + _NUM_SPECIAL} is more than the training documents yield: "
            f"set it to at most {learned}, or give more text"
        )
    return model
