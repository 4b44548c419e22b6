"""Tokenizers: text to integer ids and back, one file each. The only place that knows what an id means."""

from dlmkit.data.tokenizers.base import Tokenizer, load_tokenizer

__all__ = ["Tokenizer", "load_tokenizer"]
