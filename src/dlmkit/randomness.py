"""Random numbers that are functions of a key such as (seed, step, rank), never of what was drawn before."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def seed_for(*key: int | str) -> int:
    """Return a 63-bit seed that depends on every part of `key`."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_for(device: torch.device | str, *key: int | str) -> torch.Generator:
    """Return a generator on `device`, seeded from `key`."""
    return torch.Generator(device=device).manual_seed(seed_for(*key))


@dataclass(frozen=True)
class RowNoise:
    """Uniform numbers for each row and position, computed from a counter rather than drawn from a stream.

    A row's numbers depend on its own seed, the step, a name and the position: not on the other rows of the batch, on
    the length, on the device, or on what else was drawn. Each is splitmix64 (Steele et al. 2014, doi
    10.1145/2660193.2660195) of these, chained.

    Attributes:
        seeds: int64 [B].
        step: of sampling.
        start: position of the first column, where columns are a part of a text.
    """

    seeds: Tensor
    step: int = 0
    start: int = 0

    def uniform(self, name: str, length: int) -> Tensor:
        """Return float64 [B, length] in (0, 1), multiples of 2^-52 moved by half of that.

        Args:
            name: what the numbers are for; other names have other numbers.
            length: positions.
        """
        key = torch.tensor(seed_for(name, self.step), device=self.seeds.device)
        rows = splitmix64(splitmix64(self.seeds) ^ key)
        positions = torch.arange(self.start, self.start + length, device=self.seeds.device)
        mixed = splitmix64(splitmix64(rows[:, None] + _GOLDEN * positions) ^ key)
        return to_unit(mixed)

    def at(self, *, step: int | None = None, start: int | None = None) -> RowNoise:
        """Return the numbers of another step, or of columns from another position on."""
        return replace(self, step=self.step if step is None else step, start=self.start if start is None else start)

    def select(self, rows: Tensor) -> RowNoise:
        """Return the numbers of some rows, int64 [R]."""
        return replace(self, seeds=self.seeds[rows])


def row_noise(rows: Tensor, *key: int | str) -> RowNoise:
    """Return the noise of rows that are known by a number, int64 [B], such as a request's place in a file."""
    return RowNoise(splitmix64(rows ^ seed_for(*key)))


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
"""The odd number nearest to 2^64 over the golden ratio, as a signed integer: torch's int64 wraps around."""


def to_unit(bits: Tensor) -> Tensor:
    """Return the upper 52 of 64 bits as float64 in (0, 1): with 53 the half would be rounded, to 1 at the end."""
    return (_shifted(bits, 12).double() + 0.5) * 2.0**-52


def splitmix64(x: Tensor) -> Tensor:
    """Return the output of splitmix64 for the state x (int64, any shape), as a signed integer."""
    x = x + _GOLDEN
    x = (x ^ _shifted(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _shifted(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Return the 64 bits of x moved to the right, zeros coming in."""
    return (x >> bits) & (2 ** (64 - bits) - 1)
