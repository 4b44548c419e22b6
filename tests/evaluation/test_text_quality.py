"""Statistics of generated text: values that are known, and standard errors that are the formula's."""

from __future__ import annotations

import math

import pytest
import torch

from dlmkit.evaluation.text_quality import (
    SINGLE_RANKS,
    WIDE_BINS,
    distinct,
    histogram_distance,
    jackknife,
    rank_histogram,
    ranks,
    unigram_entropy,
)
from dlmkit.laws.denoisers import ExactNext
from dlmkit.laws.source import random_source


def test_the_entropy_of_a_text_is_that_of_its_own_tokens():
    tokens = torch.tensor([[3, 3, 3, 3], [0, 1, 2, 3], [5, 5, 7, 7]])
    assert unigram_entropy(tokens).tolist() == pytest.approx([0.0, math.log(4), math.log(2)])


def test_distinct_counts_each_n_gram_once():
    """Bigrams of abab and abcd: ab, ba, ab and ab, bc, cd."""
    tokens = torch.tensor([[0, 1, 0, 1], [0, 1, 2, 3]])
    assert distinct(tokens, 2) == pytest.approx(4 / 6)
    assert distinct(tokens, 1) == pytest.approx(4 / 8)
    assert distinct(tokens, 4) == 1.0


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = jackknife(lambda places: float(values[places].mean()), 40)
    assert found.value == pytest.approx(float(values.mean()))
    assert found.stderr == pytest.approx(float(values.std()) / math.sqrt(40), rel=1e-5)
    assert jackknife(lambda places: 1.0, 1).stderr == math.inf


def test_ranks_are_those_of_the_conditional_distributions():
    source = random_source(3, 5, None)
    tokens = source.sequences[torch.randperm(len(source.sequences), generator=torch.Generator().manual_seed(0))[:20]]
    found = ranks(ExactNext(source), tokens, batch_size=7)
    for text, row in zip(tokens.tolist(), found.tolist(), strict=True):
        given = source.joint
        for token, rank in zip(text, row, strict=True):
            chances = given.flatten(1).sum(1) if given.ndim > 1 else given
            assert rank == int((chances > chances[token]).sum())
            given = given[token]


def test_every_rank_has_its_bin():
    vocab_size = 1_000
    each = torch.stack([rank_histogram(torch.tensor([rank]), vocab_size) for rank in range(vocab_size)])
    places = each.argmax(-1)
    assert torch.equal(each.sum(-1), torch.ones(vocab_size, dtype=torch.float64))
    assert places[:SINGLE_RANKS].tolist() == list(range(SINGLE_RANKS))
    assert (places.diff() >= 0).all()
    assert set(places.tolist()) == set(range(SINGLE_RANKS + WIDE_BINS))
    assert int(rank_histogram(torch.tensor([5]), 10).argmax()) == 5  # a vocabulary with fewer tokens than bins


def test_the_distance_of_histograms():
    p, q = torch.tensor([0.5, 0.5, 0.0]).double(), torch.tensor([0.0, 0.0, 1.0]).double()
    assert histogram_distance(p, p) == 0.0
    assert histogram_distance(p, q) == histogram_distance(q, p) == 1.0
    assert histogram_distance(p, torch.tensor([0.25, 0.75, 0.0]).double()) == pytest.approx(
        (0.0625 / 0.75 + 0.0625 / 1.25) / 2
    )
