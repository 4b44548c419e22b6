"""Tokenizers: text to integer ids and back, one file each."""

from dlmkit.data.tokenizers.base import Tokenizer, load_tokenizer

__all__ = ["Tokenizer", "load_tokenizer"]
