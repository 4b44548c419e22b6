"""Explicit generators: every draw is a function of a key such as (seed, step, rank), never of what ran before."""

from __future__ import annotations

import hashlib

import torch


def seed_for(*key: int | str) -> int:
    """Return a 63-bit seed that depends on every part of `key`."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_for(device: torch.device | str, *key: int | str) -> torch.Generator:
    """Return a generator on `device`, seeded from `key`."""
    return torch.Generator(device=device).manual_seed(seed_for(*key))
