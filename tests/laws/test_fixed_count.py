"""Absorbing noise with a fixed number of masks: the bound that it draws, by enumeration of every set of masks."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from dlmkit.processes.absorbing_fixed_count import AbsorbingFixedCount
from torch import Tensor

from dlmkit.randomness import generator_for
from dlmkit.types import Noised
from laws import parts
from laws.enumeration import (
    Source,
    TablePredictor,
    chi_square_p,
    index_of,
    nodes,
    noised_everywhere,
    random_source,
    sum_by,
    time_at,
)
from laws.parts import MASK_ID, VOCAB_SIZE
from laws.test_objectives import network_without_time

LENGTH = 3
PARTS = [pytest.param(*triple, id="-".join(triple)) for triple in parts.dependent_triples()]


def every_draw(data: Source, process: AbsorbingFixedCount, scored: Tensor) -> tuple[Noised, Tensor, Tensor]:
    """Every (t, x_0, set of masks) with its share, as `noised_everywhere`; t is uniform in alpha, 24 of them.

    Between two multiples of 1 / n nothing depends on t but the density, so that few times integrate exactly.
    """
    num = int(scored.sum())
    shares = (torch.arange(24, dtype=torch.float64) + 0.5) / 24
    end = 1 - process.alpha(torch.ones(1, dtype=torch.float64))
    t = time_at(process, 1 - end * shares)
    density = -process.schedule.derivative(t) / end
    rows, chances, places = [], [], []
    for k, share in enumerate(shares):
        sets = list(combinations(scored.nonzero()[:, 0].tolist(), int(torch.ceil(num * share))))
        for masks in sets:
            x_t = data.sequences.clone()
            x_t[:, list(masks)] = MASK_ID
            rows.append((data.sequences, x_t, t[k].expand(len(x_t)), 1 / density[k].expand(len(x_t))))
            chances.append(torch.full((len(x_t),), 1 / 24 / len(sets), dtype=torch.float64))
            places.append(torch.arange(len(x_t)))
    x_0, x_t, times, weight = (torch.cat(column) for column in zip(*rows, strict=True))
    return Noised(x_0, x_t, times, scored.expand_as(x_0), weight), torch.cat(chances), torch.cat(places)


def mean_nll(name: str, process: AbsorbingFixedCount, data: Source, predictor_of, scored: Tensor) -> Tensor:
    noised, share, sequence = every_draw(data, process, scored)
    nll = parts.objective(name)(predictor_of(noised.x_t, noised.t), noised, process).nll
    return sum_by(share * nll.sum(-1), sequence, len(data.probs))


@pytest.mark.parametrize(("name", "process", "schedule"), PARTS)
def test_bound_is_exact_for_each_sequence(name, process, schedule):
    """-log p(x) itself, whatever alpha(1)."""
    data, noise = random_source(LENGTH, VOCAB_SIZE, MASK_ID), parts.process(process, schedule)
    everything = torch.ones(LENGTH, dtype=torch.bool)
    got = mean_nll(name, noise, data, lambda x_t, t: data.exact_predictor(noise, x_t, t), everything)
    torch.testing.assert_close(got, -data.probs.log(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "process", "schedule"), PARTS)
@pytest.mark.parametrize("first", [0, 1], ids=["all-scored", "one-given"])
def test_bound_is_that_of_independent_masks(name, process, schedule, first):
    """For a network that does not read t; the independent masks are those of the linear schedule."""
    data, table = random_source(LENGTH, VOCAB_SIZE, MASK_ID), network_without_time()
    scored = torch.arange(LENGTH) >= first

    def predictor(x_t: Tensor, t: Tensor) -> TablePredictor:
        return TablePredictor(table[index_of(x_t, VOCAB_SIZE)])

    noise = parts.process("absorbing")
    noised, share, sequence = noised_everywhere(data, noise, nodes(noise))
    kept = (noised.x_t == noised.x_0)[:, :first].all(-1)  # given the first token: of its own noise only alpha remains
    share = share / noise.alpha(noised.t) ** first * kept
    terms = parts.objective(name)(
        predictor(noised.x_t, noised.t),
        Noised(noised.x_0, noised.x_t, noised.t, scored.expand_as(noised.x_0), noised.weight),
        noise,
    )
    expected = sum_by(share * terms.nll.sum(-1), sequence, len(data.probs))
    got = mean_nll(name, parts.process(process, schedule), data, predictor, scored)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("share", [0.1, 0.34, 0.9])
def test_every_set_of_the_right_size_is_alike(share):
    noise, num = parts.process("absorbing_fixed_count"), 6_000
    scored = torch.tensor([True, False, True, True, True])
    t = torch.full((num,), share, dtype=torch.float64)
    x_0 = torch.zeros(num, 5, dtype=torch.int64)
    masked = noise.corrupt(x_0, t, scored.expand_as(x_0), generator_for("cpu", "sets")) == MASK_ID
    count = int(torch.ceil(torch.tensor(4 * share)))
    assert (masked.sum(-1) == count).all()
    assert not masked[:, 1].any()
    kinds = (masked * 2 ** torch.arange(5)).sum(-1).unique(return_counts=True)[1]
    size = len(list(combinations(range(4), count)))
    assert len(kinds) == size
    assert chi_square_p(kinds, torch.full((size,), num / size)) > 1e-6
