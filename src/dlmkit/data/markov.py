"""A synthetic source whose entropy is known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dlmkit.data.blocks import MemoryBlocks
from dlmkit.data.files import digest
from dlmkit.data.module import BlockDataModule
from dlmkit.data.vocabulary import Vocabulary

_MOST_CONTEXTS = 2048  # the stationary distribution costs O(contexts^3)
_FLOOR = 1e-12  # keeps every context reachable when the Dirichlet draw underflows
_MATRIX, _TRAIN, _VAL = range(3)


class MarkovDataModule(BlockDataModule):
    """Blocks drawn independently from a stationary Markov chain of order k over S states.

    Each row of the transition matrix P [S^k, S] is a Dirichlet draw. A block is exactly L tokens: the first k from the
    stationary distribution pi of the contexts, the others from P. Hence the entropy per token is
    (H(pi) + (L - k) h) / L nats with h = sum_c pi(c) H(P(. | c)), and no model's mean NLL is lower.

    The mask is id S; id S + 1 never occurs in the data and is there for backbones that prepend a token.

    Args:
        num_states: S.
        concentration: of the Dirichlet draws; small for a predictable source, large for a uniform one.
        length: L, tokens per block.
        num_train_blocks: blocks to train on; an epoch.
        num_val_blocks: blocks to validate on.
        micro_batch_size: blocks per micro-step and rank.
        accumulate: micro-steps per optimizer step.
        num_steps: optimizer steps of the whole run.
        order: k.
        seed: of the order of the blocks.
        source_seed: of the matrix and the blocks; apart from `seed`, so that runs that differ in `seed` learn and are
            evaluated on the same source.
        num_workers: processes that make batches.
    """

    def __init__(
        self,
        num_states: int,
        concentration: float,
        length: int,
        num_train_blocks: int,
        num_val_blocks: int,
        micro_batch_size: int,
        accumulate: int,
        num_steps: int,
        order: int = 1,
        seed: int = 0,
        source_seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(length, micro_batch_size, accumulate, num_steps, False, seed, num_workers)
        if num_states < 2 or num_states**order > _MOST_CONTEXTS:
            raise ValueError(
                f"num_states = {num_states}, order = {order}: num_states must be at least 2 and num_states ** order at "
                f"most {_MOST_CONTEXTS}, so use fewer states or a lower order"
            )
        if not 1 <= order <= length:
            raise ValueError(
                f"order = {order} must be between 1 and length = {length}: use a lower order or longer blocks"
            )
        if not concentration > 0:
            raise ValueError(f"concentration = {concentration} must be positive, for example 0.3")
        for name, value, least in (
            ("num_train_blocks", num_train_blocks, 1),
            ("num_val_blocks", num_val_blocks, 1),
            ("source_seed", source_seed, 0),
        ):
            if value < least:
                raise ValueError(f"{name} = {value} must be at least {least}: set {name} to {least} or more")
        self.num_states = num_states
        self.order = order
        self.concentration = concentration
        self.num_train_blocks = num_train_blocks
        self.num_val_blocks = num_val_blocks
        self.source_seed = source_seed

    @cached_property
    def transitions(self) -> NDArray[np.float64]:
        """P [S^k, S]; the row of a context (x_1 .. x_k) is its value as a number in base S, x_k the last digit."""
        drawn = self._generator(_MATRIX).dirichlet(np.full(self.num_states, self.concentration), self.num_contexts)
        drawn = drawn + _FLOOR
        return drawn / drawn.sum(axis=1, keepdims=True)

    @cached_property
    def stationary(self) -> NDArray[np.float64]:
        """Distribution pi of the contexts [S^k] that the chain leaves as it is."""
        contexts = np.arange(self.num_contexts)
        moves = np.zeros((self.num_contexts, self.num_contexts))
        for state in range(self.num_states):
            moves[contexts, self._next(contexts, state)] = self.transitions[:, state]
        return _stationary(moves)

    @property
    def num_contexts(self) -> int:
        """S^k."""
        return int(self.num_states**self.order)

    @property
    def entropy_per_token(self) -> float:
        """Exact entropy of a block in nats, divided by L."""
        rate = float(self.stationary @ _entropy(self.transitions))
        return (float(_entropy(self.stationary)) + (self.length - self.order) * rate) / self.length

    @cached_property
    def train_blocks(self) -> MemoryBlocks:
        """The training blocks, the same ones on every rank."""
        return self._draw(self.num_train_blocks, self._generator(_TRAIN))

    @cached_property
    def val_blocks(self) -> MemoryBlocks:
        """The validation blocks."""
        return self._draw(self.num_val_blocks, self._generator(_VAL))

    def _generator(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.source_seed, stream])

    def _next(self, contexts: NDArray[np.int64], states: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """Return the contexts after `states` have followed."""
        return (contexts * self.num_states + states) % self.num_contexts

    def _draw(self, num_blocks: int, generator: np.random.Generator) -> MemoryBlocks:
        tokens = np.empty((num_blocks, self.length), dtype=np.int32)
        contexts = generator.choice(self.num_contexts, size=num_blocks, p=self.stationary)
        powers = self.num_states ** np.arange(self.order - 1, -1, -1)
        tokens[:, : self.order] = contexts[:, None] // powers % self.num_states
        # all rows of cumulated probabilities end to end, row c shifted by c: one binary search draws for every block
        edges = (np.cumsum(self.transitions, axis=1) + np.arange(self.num_contexts)[:, None]).ravel()
        for place in range(self.order, self.length):
            found = np.searchsorted(edges, contexts + generator.random(num_blocks), side="right")
            states = np.clip(found - contexts * self.num_states, 0, self.num_states - 1)  # rounding at the row's ends
            tokens[:, place] = states
            contexts = self._next(contexts, states)
        return MemoryBlocks(tokens)

    @property
    def vocabulary(self) -> Vocabulary:
        """The states, then mask and begin of block."""
        return Vocabulary(self.num_states + 2, mask_id=self.num_states, bos_id=self.num_states + 1, eos_id=None)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that cover all that the blocks depend on."""
        parameters = [self.num_states, self.order, self.concentration, self.length, self.source_seed]
        return digest(["markov", *parameters, self.num_train_blocks, self.num_val_blocks])

    def encode(self, text: str) -> list[int]:
        """Return the states of numbers between spaces."""
        words = text.split()
        for word in words:
            if not (word.isdecimal() and int(word) < self.num_states):
                raise ValueError(f"{word!r} is no state: write numbers from 0 to {self.num_states - 1} between spaces")
        return [int(word) for word in words]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the states as numbers between spaces; the mask shows as ``[MASK]``, begin of block as ``[BOS]``."""
        special = {self.num_states: "[MASK]", self.num_states + 1: "[BOS]"}
        return " ".join(special.get(int(i), str(int(i))) for i in ids)


def _entropy(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy in nats along the last axis; every probability is positive."""
    entropy: NDArray[np.float64] = -(probabilities * np.log(probabilities)).sum(axis=-1)
    return entropy


def _stationary(moves: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return pi with pi = pi M by the elimination of Grassmann, Taksar and Heyman (1985).

    It never subtracts, so that each entry is exact to rounding however unlikely it is.
    """
    rest = moves.copy()
    for last in range(len(rest) - 1, 0, -1):
        rest[:last, last] /= rest[last, :last].sum()
        rest[:last, :last] += np.outer(rest[:last, last], rest[last, :last])
    chances = np.ones(len(rest))
    for state in range(1, len(rest)):
        chances[state] = chances[:state] @ rest[:state, state]
    return chances / chances.sum()
