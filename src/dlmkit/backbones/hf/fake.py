"""Hugging Face models on tensors without values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transformers import masking_utils


@contextlib.contextmanager
def plain_positions() -> Iterator[None]:
    """Have transformers take positions for those of one document, without a look at their values.

    It looks into the positions of a causal pass for packed documents, and where it cannot, it builds a mask. The kit
    hands over documents as a mask of its own, so that a real pass has no packed positions.
    """
    look = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = look
