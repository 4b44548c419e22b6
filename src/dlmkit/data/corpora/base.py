"""The interface of corpora, and what those with a tokenizer share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from dlmkit.data.sequences import Sequences
from dlmkit.data.tokenizers.base import Tokenizer
from dlmkit.data.vocabulary import Vocabulary
from dlmkit.ranges import Tokens, checked


class Corpus(ABC):
    """Training and validation sequences of L tokens, and the meaning of their ids; independent of runs and trainers.

    :meth:`prepare` comes first; the properties and methods may be used after it.

    Args:
        length: L, tokens per sequence.
        document_masking: whether batches carry segments, so that a token attends only within its own document.

    Raises:
        ValueError: `length` is below 1.
    """

    has_bos: bool = False
    """Whether every sequence begins with a begin-of-sequence token of its own, so that a backbone prepends none."""

    @checked
    def __init__(self, length: Tokens, document_masking: bool = False) -> None:
        self.length = length
        self.document_masking = document_masking

    @abstractmethod
    def prepare(self) -> None:
        """Fit the tokenizer and fill the cache, as far as the corpus has them.

        Every process calls it. What the cache holds is not made a second time, and calling it again changes nothing.
        """

    @property
    @abstractmethod
    def train_sequences(self) -> Sequences:
        """The training sequences; an epoch."""

    @property
    @abstractmethod
    def val_sequences(self) -> Sequences:
        """The validation sequences."""

    @property
    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """The size and the special ids that the network is built from."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """16 hex digits; equal for equal sequences. The order of training is not part of it."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, no special token added."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, where there is text."""
        return None

    @property
    def val_bytes(self) -> int | None:
        """UTF-8 bytes of the validation text, where known; bits per byte = nats per token * tokens / bytes / ln 2."""
        return None

    @property
    def entropy_per_token(self) -> float | None:
        """Exact entropy of the source in nats per token, where it is known: no model's mean NLL is lower."""
        return None

    @property
    def num_train_tokens(self) -> int:
        """Number of tokens in the training sequences."""
        return len(self.train_sequences) * self.length

    @property
    def num_val_tokens(self) -> int:
        """Number of scored tokens in the validation sequences; all of them unless overridden."""
        return len(self.val_sequences) * self.length


class TokenizedCorpus(Corpus):
    """A corpus whose ids are those of a tokenizer.

    Args:
        tokenizer: text to ids and back.
        length: L, tokens per sequence.
        document_masking: as for :class:`Corpus`.
    """

    def __init__(self, tokenizer: Tokenizer, length: int, document_masking: bool = False) -> None:
        super().__init__(length, document_masking)
        self._tokenizer = tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return self._tokenizer

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer's size and special ids."""
        tokenizer = self._tokenizer
        return Vocabulary(tokenizer.vocab_size, tokenizer.mask_id, tokenizer.bos_id, tokenizer.eos_id)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, no special token added."""
        return self._tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; special ids show as ``[MASK]`` and ``<|eos|>``."""
        return self._tokenizer.decode(ids)
