"""Complementary pairs of masks: each token once, and either copy the masked bound, by enumeration of every draw."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from dlmkit.noising import training_copies
from dlmkit.processes.absorbing_complementary import AbsorbingComplementary
from torch import Tensor

from dlmkit.objectives.block import Block
from dlmkit.objectives.masked import Masked
from dlmkit.processes.absorbing import Absorbing
from dlmkit.randomness import generator_for
from dlmkit.types import Batch, Noised, TokenLoss
from laws import parts
from laws.enumeration import (
    Nodes,
    TablePredictor,
    index_of,
    nodes,
    noised_everywhere,
    random_source,
    sum_by,
)
from laws.parts import MASK_ID, VOCAB_SIZE
from laws.test_objectives import network_without_time

LENGTH = 3
SCHEDULES = parts.names("schedule")
WEIGHTINGS = [Masked(), Masked("constant"), Masked("clipped", 3.0)]


def process(schedule: str) -> AbsorbingComplementary:
    return parts.process("absorbing_complementary", schedule)


def predictor(x_t: Tensor, t: Tensor) -> TablePredictor:
    """A network that reads t."""
    return TablePredictor(network_without_time()[index_of(x_t, VOCAB_SIZE)] * (0.5 + t)[:, None, None])


def grid(noise: AbsorbingComplementary) -> Nodes:
    """Over [0, 1], piece by piece: without pairs, with them, without."""
    end = float(noise.alpha(torch.ones(1, dtype=torch.float64)))
    marks = [1.0, 1.0 - noise.least_share, noise.least_share, end]
    pieces = [nodes(noise, 24, top, bottom) for top, bottom in pairwise(marks) if top > bottom]
    return Nodes(torch.cat([one.t for one in pieces]), torch.cat([one.weight for one in pieces]))


def every_draw(noise: AbsorbingComplementary, t: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """One uniform draw [D, L] for each way to fall between the thresholds of the pair at t, and its chance [D]."""
    alpha = float(noise.alpha(t))
    marks = sorted({0.0, alpha, 1.0 - alpha, 1.0})
    cells = [((low + high) / 2, high - low) for low, high in pairwise(marks) if high - low > 1e-12]
    draws = torch.tensor(list(product(cells, repeat=length)), dtype=torch.float64)  # [D, L, 2]
    return draws[..., 0], draws[..., 1].prod(-1)


def means_of_copies(objective: Masked, noise: AbsorbingComplementary) -> tuple[Tensor, Tensor]:
    """The mean of loss and of nll for each copy and sequence, [2, S] each, over all t and draws."""
    data, points = random_source(LENGTH, VOCAB_SIZE, MASK_ID), grid(noise)
    x = data.sequences
    everything = torch.ones(LENGTH, dtype=torch.bool)
    total = torch.zeros(2, 2, len(x), dtype=torch.float64)
    for t, quadrature in zip(points.t, points.weight, strict=True):
        draws, chance = every_draw(noise, t, LENGTH)
        times, weight = noise.copies(t[None], torch.ones(1, dtype=torch.float64))
        masked = noise.masks(draws, times.expand(2, len(draws)))
        for copy in range(2):
            x_t = torch.where(masked[copy][:, None], MASK_ID, x[None]).flatten(0, 1)  # [D * S, L]
            at, by = times[copy].expand(len(x_t)), weight[copy].expand(len(x_t))
            noised = Noised(x.repeat(len(draws), 1), x_t, at, everything.expand_as(x_t), by)
            result = objective(predictor(x_t, at), noised, noise)
            for which, values in enumerate((result.loss, result.nll)):
                total[which, copy] += quadrature * (chance[:, None] * values.sum(-1).view(len(draws), -1)).sum(0)
    return total[0], total[1]


@pytest.mark.parametrize("objective", WEIGHTINGS, ids=lambda objective: objective.weighting)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_either_copy_and_their_mean_integrate_over_time(schedule, objective):
    """Against independent masks at every t, for each sequence; whatever weight the loss gives to a time."""
    data, plain = random_source(LENGTH, VOCAB_SIZE, MASK_ID), parts.process("absorbing", schedule)
    noised, share, sequence = noised_everywhere(data, plain, grid(process(schedule)))
    result = objective(predictor(noised.x_t, noised.t), noised, plain)
    loss, nll = means_of_copies(objective, process(schedule))
    for got, values in ((loss, result.loss), (nll, result.nll)):
        expected = sum_by(share * values.sum(-1), sequence, len(data.probs))
        for one in (*got, got.mean(0)):
            torch.testing.assert_close(one, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", [(500,), (100, 5)], ids=["sequences", "parts"])
def test_every_scored_token_is_masked_once(schedule, shape):
    noise, length = process(schedule), 30
    share = torch.rand(shape, dtype=torch.float64, generator=generator_for("cpu", "shares"))
    t = noise.schedule.inverse(noise.least_share + (1 - 2 * noise.least_share) * share)
    tokens = torch.zeros(shape[0], length, dtype=torch.int64)
    scored = torch.rand(tokens.shape, generator=generator_for("cpu", "scored")) < 0.7
    weight = torch.ones_like(t)
    rows, x_t, times, _ = training_copies(noise, Batch(tokens, scored, tokens), t, weight, range(shape[0]), "pairs")
    masks = (x_t == MASK_ID).view(2, -1, length)
    assert torch.equal(masks.sum(0), scored.long())
    assert all(part[scored].any() for part in masks)
    torch.testing.assert_close(noise.alpha(times).view(2, *shape).sum(0), torch.ones_like(t), rtol=0, atol=1e-9)
    for name in ("tokens", "scored", "segments"):
        assert torch.equal(getattr(rows, name), torch.cat([tokens if name != "scored" else scored] * 2))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_unpaired_times_stay(schedule):
    """Down to both ends, with finite weights; masks are still antithetic: few tokens are masked twice, if few are."""
    noise = process(schedule)
    edge = torch.cat([torch.logspace(-12, -4, 50, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    t = torch.cat([noise.schedule.inverse(1 - noise.least_share * edge), torch.ones(3, dtype=torch.float64)])
    times, weight = noise.copies(t, torch.full_like(t, 0.9))
    assert torch.equal(times, torch.stack([t, t]))
    assert torch.equal(weight, torch.full_like(weight, 0.9))
    draw = torch.rand(len(t), 1000, dtype=torch.float64, generator=generator_for("cpu", "ends"))
    masked = noise.masks(draw, times)
    few = noise.alpha(t) > 0.5
    assert not (masked[0] & masked[1])[few].any()
    assert (masked[0] | masked[1])[~few].all()


@pytest.mark.parametrize("t_sampler", [one for one in parts.names("t_sampler") if one != "clipped"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_defaults_leave_out_of_the_second_copy_what_the_first_leaves_out(schedule, t_sampler):
    """Whatever t is drawn, its t' could have been."""
    noise = process(schedule)
    t, weight = parts.t_sampler(t_sampler, schedule).sample(50_000, generator_for("cpu", "draws"))
    times, _ = noise.copies(t, weight)
    assert noise.alpha(times[1]).max() <= max(1 - noise.least_share, noise.alpha(t).max()) + 1e-9
    eps = parts.t_sampler(t_sampler, schedule).eps
    smallest = eps if t_sampler == "importance" else float(1 - noise.alpha(torch.tensor(eps, dtype=torch.float64)))
    assert smallest <= noise.least_share


def test_first_copy_is_independent_noise():
    """Runs of `absorbing` and of pairs meet the same noise in the first copy."""
    noise, plain = process("linear"), parts.process("absorbing")
    t = torch.linspace(0.05, 0.95, 20, dtype=torch.float64)
    x_0, scored = torch.zeros(20, 9, dtype=torch.int64), torch.ones(20, 9, dtype=torch.bool)
    first = noise.corrupt_copies(x_0, noise.copies(t, t)[0], scored, generator_for("cpu", 1))[0]
    assert torch.equal(first, plain.corrupt(x_0, t, scored, generator_for("cpu", 1)))


@pytest.mark.parametrize("name", ["absorbing", "absorbing_complementary", "absorbing_fixed_count", "uniform"])
@pytest.mark.parametrize("num_parts", [1, 3])
def test_noise_of_a_training_pass_belongs_to_the_block(name, num_parts):
    """However the blocks come together; and one copy's is what `corrupt` draws."""
    noise, num, length = parts.process(name), 6, 12
    tokens = torch.zeros(num, length, dtype=torch.int64)
    batch = Batch(tokens, torch.arange(length).expand(num, -1) > 2)
    t = torch.rand((num, num_parts), dtype=torch.float64, generator=generator_for("cpu", "t")).squeeze(-1)

    def drawn(rows: list[int]) -> list[Tensor]:
        some = Batch(batch.tokens[rows], batch.scored[rows])
        out = training_copies(noise, some, t[rows], t[rows], rows, 7, "noise", 3)[1:]
        return [one.unflatten(0, (noise.num_copies, -1)) for one in out]

    whole, pieces = drawn(list(range(num))), [drawn(rows) for rows in ([4, 1], [0], [3, 5, 2])]
    for k, one in enumerate(whole):
        together = torch.cat([piece[k] for piece in pieces], dim=1)
        assert torch.equal(together, one[:, [4, 1, 0, 3, 5, 2]])
    for i in range(num):
        here = (tokens[i].view(num_parts, -1), t[i].view(-1), batch.scored[i].view(num_parts, -1))
        if noise.num_copies == 1 or noise.independent:  # of a pair the first
            alone = noise.corrupt(*here, generator_for("cpu", 7, "noise", 3, i))
            assert torch.equal(whole[0][0, i], alone.flatten())


def test_blocks_have_pairs_of_their_own():
    """In block diffusion each block's copies weigh as they would alone, with t' for t and half of the weight."""
    noise, objective, num, length = process("cosine"), Block(4, Masked()), 3, 12
    batch = Batch(torch.zeros(num, length, dtype=torch.int64), torch.ones(num, length, dtype=torch.bool))
    t = torch.rand((num, 3), dtype=torch.float64, generator=generator_for("cpu", "t")) * 0.9 + 0.05
    table = torch.randn(1, length, VOCAB_SIZE, dtype=torch.float64, generator=generator_for("cpu", "table"))

    def losses(noise: Absorbing, x_t: Tensor, t: Tensor, weight: Tensor) -> Tensor:
        rows = (len(x_t) // num, 1)
        noised = Noised(batch.tokens.repeat(rows), x_t, t, batch.scored.repeat(rows), weight)
        result: TokenLoss = objective(TablePredictor(table.expand(len(x_t), -1, -1)), noised, noise)
        return result.loss

    _, x_t, times, weight = training_copies(noise, batch, t, torch.ones_like(t), range(num), "blocks")
    assert times.shape == (2 * num, 3)
    by_block = losses(noise, x_t, times, weight).view(2, num, 3, 4)
    for copy in range(2):
        for b in range(num):
            for k in range(3):
                at = times.view(2, num, 3)[copy, b, k]
                pay = -table[0, 4 * k : 4 * k + 4].log_softmax(-1)[:, 0]
                masks = x_t.view(2, num, 3, 4)[copy, b, k] == MASK_ID
                slope = -noise.schedule.derivative(t[b, k]) / (1 - noise.alpha(at))  # alpha'(t') has cancelled
                torch.testing.assert_close(by_block[copy, b, k], 0.5 * masks * pay * slope)


@pytest.mark.parametrize("value", [0.0, -0.1, 0.5, 2.0])
def test_min_share_is_a_small_share(value):
    with pytest.raises(ValueError, match=r"min_share .* is outside \(0, 0.5\)"):
        parts.process("absorbing_complementary", min_share=value)


def test_discrete_time_has_no_complementary_steps():
    noise = parts.process("absorbing_complementary")
    for objective in (parts.objective("discrete"), Block(2, parts.objective("discrete"))):
        with pytest.raises(ValueError, match=r"set process=absorbing$"):
            objective.check(noise)
