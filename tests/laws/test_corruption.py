"""Corruptions: each copy alone has the mean of independent noise, by enumeration of every draw.

Shapes: C copies, B sequences, L positions, K blocks, S sequences of the source, D draws.
"""

from __future__ import annotations

from itertools import combinations, pairwise, product

import pytest
import torch
from torch import Tensor

from dlmkit.compatibility import Parts, fit
from dlmkit.corruption.base import Corruption
from dlmkit.corruption.complementary import Complementary
from dlmkit.corruption.fixed_count import FixedCount
from dlmkit.laws import corruption as laws
from dlmkit.laws.predictions import TablePrediction
from dlmkit.laws.quadrature import Nodes, nodes, time_at
from dlmkit.laws.source import Source, index_of, noised_everywhere, sum_by
from dlmkit.laws.statistics import chi_square_p
from dlmkit.objectives.block import BlockElbo
from dlmkit.objectives.masked import MaskedElbo
from dlmkit.processes.absorbing import Absorbing
from dlmkit.processes.base import ForwardProcess
from dlmkit.randomness import generator_for
from dlmkit.types import Batch, Noised, TimeDraw, TokenLoss
from laws import parts
from laws.asserting import asserting
from laws.parts import MASK_ID, VOCAB_SIZE
from laws.tables import LENGTH, network_without_time, predictor_with_time, source

SCHEDULES = parts.names("schedule")


def built(name: str, process: str, schedule: str) -> tuple[Corruption, ForwardProcess]:
    return parts.corruption(name), parts.process(process, schedule)


@pytest.mark.parametrize(("law", "case"), parts.applying(laws.LAWS, parts.corruption_cases(), built))
def test_corruption(law, case):
    asserting(law)(*built(*case))


@pytest.mark.parametrize("min_share", [1e-6, 0.1, 0.49])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_complementary_keeps_the_laws_at_any_smallest_share(schedule, min_share):
    pairs, noise = parts.corruption("complementary", min_share=min_share), parts.process("absorbing", schedule)
    for law in laws.LAWS:
        if law.why_not(pairs, noise) is None:
            asserting(law)(pairs, noise)


# Every corruption


@pytest.mark.parametrize(("name", "process"), parts.params(case[:2] for case in parts.corruption_cases(parts.LINEAR)))
@pytest.mark.parametrize("num_blocks", [1, 3])
def test_noise_of_a_training_pass_belongs_to_the_sequence(name, process, num_blocks):
    """Whatever micro-batch it is in; and the first copy of independent noise is what `corrupt` draws."""
    corruption, noise, num, length = parts.corruption(name), parts.process(process), 6, 12
    tokens = torch.zeros(num, length, dtype=torch.int64)
    batch = Batch(tokens, torch.arange(length).expand(num, -1) > 2)
    t = torch.rand((num, num_blocks), dtype=torch.float64, generator=generator_for("cpu", "t")).squeeze(-1)

    def drawn(rows: list[int]) -> list[Tensor]:
        some = Batch(batch.tokens[rows], batch.scored[rows])
        noised = corruption.draw(noise, some, TimeDraw(t[rows], t[rows]), rows, 7, "noise", 3)
        return [one.unflatten(0, (corruption.num_copies, -1)) for one in (noised.x_t, noised.t, noised.weight)]

    whole, pieces = drawn(list(range(num))), [drawn(rows) for rows in ([4, 1], [0], [3, 5, 2])]
    for k, one in enumerate(whole):
        together = torch.cat([piece[k] for piece in pieces], dim=1)
        assert torch.equal(together, one[:, [4, 1, 0, 3, 5, 2]])
    for i in range(num):
        here = (tokens[i].view(num_blocks, -1), t[i].view(-1), batch.scored[i].view(num_blocks, -1))
        if corruption.independent:
            alone = noise.corrupt(*here, generator_for("cpu", 7, "noise", 3, i))
            assert torch.equal(whole[0][0, i], alone.flatten())


@pytest.mark.parametrize("name", parts.names("corruption"))
def test_a_noised_batch_repeats_the_clean_one(name):
    """All first copies before all second ones; weights are divided by the number of copies."""
    corruption, noise, num = parts.corruption(name), parts.process("absorbing"), 5
    tokens = torch.randint(2, 4, (num, 4), generator=generator_for("cpu", "tokens"))
    batch = Batch(tokens, tokens > 2, tokens.sort(-1).values)
    t = torch.full((num,), 0.5, dtype=torch.float64)
    noised = corruption.draw(noise, batch, TimeDraw(t, torch.ones_like(t)), range(num), "key")
    rows = (corruption.num_copies, 1)
    assert torch.equal(noised.x_0, tokens.repeat(rows))
    assert torch.equal(noised.scored, batch.scored.repeat(rows))
    assert torch.equal(noised.segments, batch.segments.repeat(rows))
    assert noised.weight.tolist() == pytest.approx([1 / corruption.num_copies] * num * corruption.num_copies)
    assert (noised.noise_rate is None) == corruption.independent


# A fixed number of masks

DEPENDENT = parts.params(
    case
    for case in parts.objective_cases()
    if fit(Parts(parts.process(case[1], case[2]), parts.objective(case[0]), corruption=parts.corruption("fixed_count")))
)
"""Every (objective, process, schedule) of which only the mean over t need be right."""


def every_set(data: Source, process: Absorbing, scored: Tensor) -> tuple[Noised, Tensor, Tensor]:
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
    everywhere = scored.expand_as(x_0)
    rate = FixedCount().noise_rate(process, times, everywhere)
    noised = Noised(x_0, x_t, times, everywhere, weight, noise_rate=rate)
    return noised, torch.cat(chances), torch.cat(places)


def mean_nll(name: str, process: Absorbing, data: Source, predictor_of, scored: Tensor) -> Tensor:
    noised, share, sequence = every_set(data, process, scored)
    nll = parts.objective(name)(predictor_of(noised.x_t, noised.t), noised, process).nll
    return sum_by(share * nll.sum(-1), sequence, len(data.probs))


@pytest.mark.parametrize(("name", "process", "schedule"), DEPENDENT)
def test_fixed_count_bound_is_exact_for_each_sequence(name, process, schedule):
    """-log p(x) itself, whatever alpha(1)."""
    data, noise = source(), parts.process(process, schedule)
    everything = torch.ones(LENGTH, dtype=torch.bool)
    got = mean_nll(name, noise, data, lambda x_t, t: data.exact_predictor(noise, x_t, t), everything)
    torch.testing.assert_close(got, -data.probs.log(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "process", "schedule"), DEPENDENT)
@pytest.mark.parametrize("first", [0, 1], ids=["all-scored", "one-given"])
def test_fixed_count_bound_is_that_of_independent_masks(name, process, schedule, first):
    """For a network that does not read t; the independent masks are those of the linear schedule."""
    data, table = source(), network_without_time()
    scored = torch.arange(LENGTH) >= first

    def predictor(x_t: Tensor, t: Tensor) -> TablePrediction:
        return TablePrediction(table[index_of(x_t, VOCAB_SIZE)])

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
def test_every_set_of_the_right_size_is_equally_likely(share):
    noise, num = parts.process("absorbing"), 6_000
    scored = torch.tensor([True, False, True, True, True])
    t = torch.full((1, num), share, dtype=torch.float64)
    x_0 = torch.zeros(num, 5, dtype=torch.int64)
    (x_t,) = FixedCount().corrupt(noise, x_0, t, scored.expand_as(x_0), generator_for("cpu", "sets"))
    masked = x_t == MASK_ID
    count = int(torch.ceil(torch.tensor(4 * share)))
    assert (masked.sum(-1) == count).all()
    assert not masked[:, 1].any()
    kinds = (masked * 2 ** torch.arange(5)).sum(-1).unique(return_counts=True)[1]
    size = len(list(combinations(range(4), count)))
    assert len(kinds) == size
    assert chi_square_p(kinds, torch.full((size,), num / size)) > 1e-6


# Complementary pairs of masks

WEIGHTINGS = [MaskedElbo(), MaskedElbo("constant"), MaskedElbo("clipped", 3.0)]
PAIRS: Complementary = parts.corruption("complementary")


def grid(noise: Absorbing) -> Nodes:
    """Over [0, 1], piece by piece: without pairs, with them, without."""
    end, least = float(noise.alpha(torch.ones(1, dtype=torch.float64))), PAIRS.least_share(noise)
    pieces = [nodes(noise, 24, top, bottom) for top, bottom in pairwise([1.0, 1.0 - least, least, end]) if top > bottom]
    return Nodes(torch.cat([one.t for one in pieces]), torch.cat([one.weight for one in pieces]))


def every_draw(noise: Absorbing, t: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """One uniform draw [D, L] for each way to fall between the thresholds of the pair at t, and its chance [D]."""
    alpha = float(noise.alpha(t))
    marks = sorted({0.0, alpha, 1.0 - alpha, 1.0})
    cells = [((low + high) / 2, high - low) for low, high in pairwise(marks) if high - low > 1e-12]
    draws = torch.tensor(list(product(cells, repeat=length)), dtype=torch.float64)  # [D, L, 2]
    return draws[..., 0], draws[..., 1].prod(-1)


def means_of_copies(objective: MaskedElbo, noise: Absorbing) -> tuple[Tensor, Tensor]:
    """The mean of loss and of nll for each copy and sequence, [2, S] each, over all t and draws."""
    data, points = source(), grid(noise)
    x = data.sequences
    everything = torch.ones(LENGTH, dtype=torch.bool)
    total = torch.zeros(2, 2, len(x), dtype=torch.float64)
    for t, quadrature in zip(points.t, points.weight, strict=True):
        draws, chance = every_draw(noise, t, LENGTH)
        times, weight = PAIRS.times(noise, TimeDraw(t[None], torch.ones(1, dtype=torch.float64)))
        masked = PAIRS.masks(noise, draws, times.expand(2, len(draws)))
        for copy in range(2):
            x_t = torch.where(masked[copy][:, None], MASK_ID, x[None]).flatten(0, 1)  # [D * S, L]
            at, by = times[copy].expand(len(x_t)), weight[copy].expand(len(x_t))
            noised = Noised(x.repeat(len(draws), 1), x_t, at, everything.expand_as(x_t), by)
            result = objective(predictor_with_time(x_t, at), noised, noise)
            for which, values in enumerate((result.loss, result.nll)):
                total[which, copy] += quadrature * (chance[:, None] * values.sum(-1).view(len(draws), -1)).sum(0)
    return total[0], total[1]


@pytest.mark.parametrize("objective", WEIGHTINGS, ids=lambda objective: objective.weighting)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_either_copy_and_their_mean_integrate_over_time(schedule, objective):
    """Against independent masks at every t, for each sequence; whatever weight the loss gives to a time."""
    data, noise = source(), parts.process("absorbing", schedule)
    noised, share, sequence = noised_everywhere(data, noise, grid(noise))
    result = objective(predictor_with_time(noised.x_t, noised.t), noised, noise)
    loss, nll = means_of_copies(objective, noise)
    for got, values in ((loss, result.loss), (nll, result.nll)):
        expected = sum_by(share * values.sum(-1), sequence, len(data.probs))
        for one in (*got, got.mean(0)):
            torch.testing.assert_close(one, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", [(500,), (100, 5)], ids=["sequences", "blocks"])
def test_every_scored_token_is_masked_once(schedule, shape):
    noise, length = parts.process("absorbing", schedule), 30
    least = PAIRS.least_share(noise)
    share = torch.rand(shape, dtype=torch.float64, generator=generator_for("cpu", "shares"))
    t = noise.schedule.inverse(least + (1 - 2 * least) * share)
    tokens = torch.zeros(shape[0], length, dtype=torch.int64)
    scored = torch.rand(tokens.shape, generator=generator_for("cpu", "scored")) < 0.7
    draw = TimeDraw(t, torch.ones_like(t))
    noised = PAIRS.draw(noise, Batch(tokens, scored, tokens), draw, range(shape[0]), "pairs")
    masks = (noised.x_t == MASK_ID).view(2, -1, length)
    assert torch.equal(masks.sum(0), scored.long())
    assert all(copy[scored].any() for copy in masks)
    torch.testing.assert_close(noise.alpha(noised.t).view(2, *shape).sum(0), torch.ones_like(t), rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_unpaired_times_stay(schedule):
    """Down to both ends, with finite weights; masks are still antithetic: few tokens are masked twice, if few are."""
    noise = parts.process("absorbing", schedule)
    edge = torch.cat([torch.logspace(-12, -4, 50, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    near_0 = noise.schedule.inverse(1 - PAIRS.least_share(noise) * edge)
    t = torch.cat([near_0, torch.ones(3, dtype=torch.float64)])
    times, weight = PAIRS.times(noise, TimeDraw(t, torch.full_like(t, 0.9)))
    assert torch.equal(times, torch.stack([t, t]))
    assert torch.equal(weight, torch.full_like(weight, 0.9))
    draw = torch.rand(len(t), 1000, dtype=torch.float64, generator=generator_for("cpu", "ends"))
    masked = PAIRS.masks(noise, draw, times)
    few = noise.alpha(t) > 0.5
    assert not (masked[0] & masked[1])[few].any()
    assert (masked[0] | masked[1])[~few].all()


@pytest.mark.parametrize("t_sampler", [one for one in parts.names("t_sampler") if one != "clipped"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_defaults_leave_out_of_the_second_copy_what_the_first_leaves_out(schedule, t_sampler):
    """Whatever t is drawn, its t' could have been."""
    noise, times = parts.process("absorbing", schedule), parts.t_sampler(t_sampler, schedule)
    draw = times.sample(50_000, generator_for("cpu", "draws"))
    least, second = PAIRS.least_share(noise), PAIRS.times(noise, draw).t[1]
    assert noise.alpha(second).max() <= max(1 - least, noise.alpha(draw.t).max()) + 1e-9
    eps = torch.tensor(times.eps, dtype=torch.float64)
    assert (times.eps if t_sampler == "importance" else float(1 - noise.alpha(eps))) <= least


def test_first_copy_is_independent_noise():
    """Runs with `independent` and with pairs have the same noise in the first copy."""
    noise = parts.process("absorbing")
    t = torch.linspace(0.05, 0.95, 20, dtype=torch.float64)
    x_0, scored = torch.zeros(20, 9, dtype=torch.int64), torch.ones(20, 9, dtype=torch.bool)
    first = PAIRS.corrupt(noise, x_0, PAIRS.times(noise, TimeDraw(t, t)).t, scored, generator_for("cpu", 1))[0]
    assert torch.equal(first, noise.corrupt(x_0, t, scored, generator_for("cpu", 1)))


def test_blocks_have_pairs_of_their_own():
    """In block diffusion each block's copies weigh as they would alone, with t' for t and half of the weight."""
    noise, objective, num, length = parts.process("absorbing", "cosine"), BlockElbo(4, MaskedElbo()), 3, 12
    batch = Batch(torch.zeros(num, length, dtype=torch.int64), torch.ones(num, length, dtype=torch.bool))
    t = torch.rand((num, 3), dtype=torch.float64, generator=generator_for("cpu", "t")) * 0.9 + 0.05
    table = torch.randn(1, length, VOCAB_SIZE, dtype=torch.float64, generator=generator_for("cpu", "table"))

    noised = PAIRS.draw(noise, batch, TimeDraw(t, torch.ones_like(t)), range(num), "blocks")
    assert noised.t.shape == (2 * num, 3)
    result: TokenLoss = objective(TablePrediction(table.expand(2 * num, -1, -1)), noised, noise)
    by_block = result.loss.view(2, num, 3, 4)
    for copy in range(2):
        for b in range(num):
            for k in range(3):
                at = noised.t.view(2, num, 3)[copy, b, k]
                cost = -table[0, 4 * k : 4 * k + 4].log_softmax(-1)[:, 0]
                masks = noised.x_t.view(2, num, 3, 4)[copy, b, k] == MASK_ID
                slope = -noise.schedule.derivative(t[b, k]) / (1 - noise.alpha(at))  # alpha'(t') has cancelled
                torch.testing.assert_close(by_block[copy, b, k], 0.5 * masks * cost * slope)


@pytest.mark.parametrize("value", [0.0, -0.1, 0.5, 2.0])
def test_min_share_is_a_small_share(value):
    with pytest.raises(ValueError, match=r"min_share .* is outside \(0, 0.5\)"):
        parts.corruption("complementary", min_share=value)
