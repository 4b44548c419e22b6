"""What a denoiser keeps between calls; :mod:`dlmkit.types` has it too."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Cache(Protocol):
    """What a denoiser keeps of tokens around those that it is asked about; only its maker reads it.

    `Denoiser.prefill` makes one of a clean prefix, and `Denoiser.freeze` one of all that is around a run of tokens. It
    is a value: no call changes it.
    """

    @property
    def length(self) -> int:
        """P, tokens before those that are asked about."""

    @property
    def exact(self) -> bool:
        """Whether predictions are those of a pass over all the tokens; false where some activations grow old."""

    def select(self, rows: Tensor) -> Cache:
        """Return the cache of the sequences `rows` (int64 [R], repeats allowed), in that order."""
