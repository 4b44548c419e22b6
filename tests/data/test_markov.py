"""The Markov source is what it says: its statistics, and an entropy that is exact."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from data_helpers import one_line

from dlmkit.data.corpora.markov import MarkovCorpus
from dlmkit.data.module import CorpusDataModule
from dlmkit.data.order import BatchPlan


def make(**changes: object) -> MarkovCorpus:
    settings: dict = {
        "num_states": 3,
        "order": 1,
        "concentration": 0.5,
        "length": 5,
        "num_train_sequences": 64,
        "num_val_sequences": 8,
    }
    return MarkovCorpus(**(settings | changes))


def context_of(source: MarkovCorpus, states: tuple[int, ...]) -> int:
    value = 0
    for state in states:
        value = value * source.num_states + state
    return value


def probability(source: MarkovCorpus, sequence: tuple[int, ...]) -> float:
    k = source.order
    chance = source.stationary[context_of(source, sequence[:k])]
    for i in range(k, len(sequence)):
        chance *= source.transitions[context_of(source, sequence[i - k : i]), sequence[i]]
    return float(chance)


@pytest.mark.parametrize("concentration", [0.001, 0.1, 1.0, 50.0])
@pytest.mark.parametrize(("num_states", "order", "length"), [(2, 1, 1), (3, 1, 5), (2, 2, 6), (2, 3, 3), (3, 2, 4)])
def test_entropy_equals_brute_force(num_states: int, order: int, length: int, concentration: float) -> None:
    source = make(num_states=num_states, order=order, length=length, concentration=concentration)
    chances = [probability(source, sequence) for sequence in itertools.product(range(num_states), repeat=length)]
    assert sum(chances) == pytest.approx(1, abs=1e-12)
    exact = -sum(p * math.log(p) for p in chances if p > 0) / length
    assert source.entropy_per_token == pytest.approx(exact, abs=1e-10)


@pytest.mark.parametrize(("num_states", "order"), [(16, 1), (4, 3)])
def test_stationary_distribution_is_left_as_it_is(num_states: int, order: int) -> None:
    source = make(num_states=num_states, order=order, concentration=0.05)
    moved = np.zeros(source.num_contexts)
    for context, state in itertools.product(range(source.num_contexts), range(num_states)):
        moved[(context * num_states + state) % source.num_contexts] += (
            source.stationary[context] * source.transitions[context, state]
        )
    assert np.allclose(moved, source.stationary, rtol=1e-9, atol=0)


@pytest.mark.parametrize("order", [1, 2])
def test_every_sequence_has_the_probability_it_should(order: int) -> None:
    number = 200_000
    source = make(order=order, length=4, num_train_sequences=number)
    powers = 3 ** np.arange(4)[::-1]
    counts = np.bincount(source.train_sequences.tokens(range(number)) @ powers, minlength=81)
    expected = number * np.array([probability(source, sequence) for sequence in itertools.product(range(3), repeat=4)])
    common = expected > 5
    chi_square = ((counts - expected)[common] ** 2 / expected[common]).sum()
    freedom = common.sum() - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)
    assert counts[~common].sum() < 5 * expected[~common].sum() + 10


def test_true_model_scores_the_entropy_on_validation_sequences() -> None:
    source = make(num_states=8, length=32, num_val_sequences=4000)
    tokens = source.val_sequences.tokens(range(4000))
    logs = np.log(source.stationary[tokens[:, 0]]) + np.log(source.transitions[tokens[:, :-1], tokens[:, 1:]]).sum(1)
    per_token = -logs / 32
    error = per_token.std() / math.sqrt(4000)
    assert abs(per_token.mean() - source.entropy_per_token) < 5 * error


def test_source_seed_decides_the_data_and_seed_only_the_order() -> None:
    def train(source: MarkovCorpus) -> list:
        return source.train_sequences.tokens(range(64)).tolist()

    assert train(make()) == train(make())
    assert train(make()) != train(make(source_seed=1))
    assert make().fingerprint == "b081e367088e9d64"  # else runs on equal data count as different
    changes = [{"source_seed": 1}, {"order": 2}, {"length": 6}, {"concentration": 1.0}, {"num_val_sequences": 9}]
    assert len({make(**change).fingerprint for change in [{}, *changes]}) == 6
    first, second = (CorpusDataModule(make(), BatchPlan(4, 2, 3, seed=seed)) for seed in (0, 1))
    assert [b.tokens.tolist() for b in first.train_dataloader()] != [
        b.tokens.tolist() for b in second.train_dataloader()
    ]


def test_validation_is_drawn_apart_from_training() -> None:
    source = make(num_states=16, length=32)
    train = set(map(tuple, source.train_sequences.tokens(range(64)).tolist()))
    assert not train & set(map(tuple, source.val_sequences.tokens(range(8)).tolist()))


def test_vocabulary_has_a_mask_and_a_begin_that_never_occur() -> None:
    source = make()
    source.prepare()
    vocabulary = source.vocabulary
    assert (vocabulary.size, vocabulary.mask_id, vocabulary.bos_id, vocabulary.eos_id) == (5, 3, 4, None)
    assert source.train_sequences.tokens(range(64)).max() == 2
    assert (source.num_train_tokens, source.num_val_tokens) == (320, 40)
    assert source.decode([0, 2, 3, 4]) == "0 2 [MASK] [BOS]"
    assert source.encode("0 2  1") == [0, 2, 1]
    assert source.tokenizer is None
    assert source.val_bytes is None


def test_bad_input_is_explained_in_one_line() -> None:
    for changes, expected in (
        ({"num_states": 1}, "num_states 1 is outside"),
        ({"num_states": 50, "order": 2}, "num_states 50 with order 2: .* at most 2048"),
        ({"order": 0}, r"order 0 is outside \[1, 11\]"),
        ({"order": 6}, "order 6 is more than length 5"),
        ({"concentration": 0.0}, "concentration 0.0 is outside"),
        ({"num_val_sequences": 0}, "num_val_sequences 0 is outside"),
    ):
        with pytest.raises(ValueError, match=expected) as error:
            make(**changes)
        one_line(error)
    with pytest.raises(ValueError, match="'3' is not a state: write numbers from 0 to 2"):
        make().encode("0 3")
