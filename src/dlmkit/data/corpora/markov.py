"""A synthetic source whose entropy is known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from dlmkit.data.corpora.base import Corpus
from dlmkit.data.files import digest
from dlmkit.data.sequences import MemorySequences
from dlmkit.data.vocabulary import Vocabulary
from dlmkit.ranges import Range, Tokens, checked

_MOST_CONTEXTS = 2048  # the stationary distribution costs O(contexts^3)
_FLOOR = 1e-12  # keeps every context reachable when the Dirichlet draw underflows
_MATRIX, _TRAIN, _VAL = range(3)

NumSequences = Annotated[int, Range("[1, 10000000]", "they are kept in memory, such as 16384")]


class MarkovCorpus(Corpus):
    """Sequences drawn independently from a stationary Markov chain of order k over S states.

    Each row of the transition matrix P [S^k, S] is a Dirichlet draw. A sequence is exactly L tokens: the first k from
    the stationary distribution pi of the contexts, the others from P. Hence the entropy per token is
    (H(pi) + (L - k) h) / L nats with h = sum_c pi(c) H(P(. | c)), and no model's mean NLL is lower.

    The mask is id S; id S + 1 never occurs in the data and is there for backbones that prepend a token.

    Args:
        num_states: S.
        concentration: of the Dirichlet draws; small for a predictable source, large for a uniform one.
        length: L, tokens per sequence.
        num_train_sequences: training sequences; an epoch.
        num_val_sequences: validation sequences.
        order: k.
        source_seed: of the matrix and the sequences; separate from a run's seed, so that runs that differ in that
            learn and are evaluated on the same source.

    Raises:
        ValueError: a number out of its range.
    """

    @checked
    def __init__(
        self,
        num_states: Annotated[int, Range(f"[2, {_MOST_CONTEXTS}]", "give the number of states, such as 16")],
        concentration: Annotated[float, Range("[1e-3, 1e6]", "small is predictable, for example 0.3")],
        length: Tokens,
        num_train_sequences: NumSequences,
        num_val_sequences: NumSequences,
        order: Annotated[int, Range("[1, 11]", "it is the number of states before that matter, such as 1")] = 1,
        source_seed: Annotated[int, Range(f"[0, {2**63 - 1}]", "give a whole number, such as 0")] = 0,
    ) -> None:
        super().__init__(length)
        if num_states**order > _MOST_CONTEXTS:
            raise ValueError(
                f"num_states {num_states} with order {order}: num_states ** order must be at most {_MOST_CONTEXTS}, so"
                " use fewer states or a lower order"
            )
        if order > length:
            raise ValueError(f"order {order} is more than length {length}: use a lower order or longer sequences")
        self.num_states = num_states
        self.order = order
        self.concentration = concentration
        self.num_train_sequences = num_train_sequences
        self.num_val_sequences = num_val_sequences
        self.source_seed = source_seed

    def prepare(self) -> None:
        """Do nothing: the sequences are drawn when they are first read."""

    @cached_property
    def transitions(self) -> NDArray[np.float64]:
        """P [S^k, S]; the row of a context (x_1 .. x_k) is its value as a number in base S, x_k the last digit."""
        drawn = self._generator(_MATRIX).dirichlet(np.full(self.num_states, self.concentration), self.num_contexts)
        drawn = drawn + _FLOOR
        return drawn / drawn.sum(axis=1, keepdims=True)

    @cached_property
    def stationary(self) -> NDArray[np.float64]:
        """Stationary distribution pi of the contexts, [S^k]."""
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
        """Exact entropy of a sequence in nats, divided by L."""
        rate = float(self.stationary @ _entropy(self.transitions))
        return (float(_entropy(self.stationary)) + (self.length - self.order) * rate) / self.length

    @cached_property
    def train_sequences(self) -> MemorySequences:
        """The training sequences, the same ones on every rank; an epoch."""
        return self._draw(self.num_train_sequences, self._generator(_TRAIN))

    @cached_property
    def val_sequences(self) -> MemorySequences:
        """The validation sequences."""
        return self._draw(self.num_val_sequences, self._generator(_VAL))

    def _generator(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.source_seed, stream])

    def _next(self, contexts: NDArray[np.int64], states: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """Return the contexts after `states` were appended."""
        return (contexts * self.num_states + states) % self.num_contexts

    def _draw(self, number: int, generator: np.random.Generator) -> MemorySequences:
        tokens = np.empty((number, self.length), dtype=np.int32)
        contexts = generator.choice(self.num_contexts, size=number, p=self.stationary)
        powers = self.num_states ** np.arange(self.order - 1, -1, -1)
        tokens[:, : self.order] = contexts[:, None] // powers % self.num_states
        # all rows of cumulated probabilities end to end, row c shifted by c: one binary search draws for every sequence
        edges = (np.cumsum(self.transitions, axis=1) + np.arange(self.num_contexts)[:, None]).ravel()
        for position in range(self.order, self.length):
            found = np.searchsorted(edges, contexts + generator.random(number), side="right")
            states = np.clip(found - contexts * self.num_states, 0, self.num_states - 1)  # rounding at the row's ends
            tokens[:, position] = states
            contexts = self._next(contexts, states)
        return MemorySequences(tokens)

    @property
    def vocabulary(self) -> Vocabulary:
        """The states, then the mask and the begin-of-sequence id."""
        return Vocabulary(self.num_states + 2, mask_id=self.num_states, bos_id=self.num_states + 1, eos_id=None)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of everything that the sequences depend on."""
        parameters = [self.num_states, self.order, self.concentration, self.length, self.source_seed]
        return digest(["markov", *parameters, self.num_train_sequences, self.num_val_sequences])

    def encode(self, text: str) -> list[int]:
        """Return the states of numbers separated by spaces."""
        words = text.split()
        for word in words:
            if not (word.isdecimal() and int(word) < self.num_states):
                raise ValueError(
                    f"{word!r} is not a state: write numbers from 0 to {self.num_states - 1}, separated by spaces"
                )
        return [int(word) for word in words]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the states as numbers separated by spaces; the special ids show as ``[MASK]`` and ``[BOS]``."""
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
