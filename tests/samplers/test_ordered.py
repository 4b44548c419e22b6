"""Samplers that rank positions: scores, ties, counts, and what a step costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dlmkit.backbones.dit import DiT
from dlmkit.generation import Event, generate
from dlmkit.laws.denoisers import FixedLogits
from dlmkit.laws.findings import FALSE_ALARM
from dlmkit.laws.samplers import empty
from dlmkit.laws.statistics import chi_square_p
from dlmkit.processes.absorbing import Absorbing
from dlmkit.randomness import row_noise
from dlmkit.samplers.base import Reading, Sampler, Step
from dlmkit.samplers.confidence import Confidence
from dlmkit.samplers.ranking import entropy, ranking, state_score
from dlmkit.schedules.cosine import Cosine
from dlmkit.schedules.linear import Linear
from dlmkit.types import Canvas
from laws import parts
from networks import randomised

NOISE = Absorbing(Linear(), 4, 3)
PROBS = torch.tensor([[0.5, 0.4, 0.1, 0.0], [0.45, 0.1, 0.45, 0.0], [0.6, 0.2, 0.2, 0.0], [0.34, 0.33, 0.33, 0.0]])


def network(num: int, probs: Tensor = PROBS) -> FixedLogits:
    """A network with these probabilities [L, V], whatever it reads."""
    return FixedLogits(probs.log().expand(num, *probs.shape))


def a_step(num: int, length: int, index: int = 0, num_steps: int = 4) -> Step:
    nothing, t = torch.zeros(num, length, dtype=torch.bool), torch.ones(num, dtype=torch.float64)
    return Step(index, num_steps, t, t / 2, nothing, nothing, row_noise(torch.arange(num), "step"))


def order(sampler: Any, probs: Tensor = PROBS, num: int = 1) -> list[list[int]]:
    """Positions in the order in which they are decided, of each row."""
    decided: list[list[int]] = [[] for _ in range(num)]

    def on_step(event: Event) -> None:
        for row, changed in zip(event.rows.tolist(), event.before != event.after, strict=True):
            decided[row] += changed.nonzero()[:, 0].tolist()

    generate(network(num, probs), NOISE, sampler, empty(NOISE, num, len(probs)), len(probs), 0, on_step)
    return decided


# Scores


def test_scores_by_hand():
    where, log_probs, noise = torch.ones(1, 4, dtype=torch.bool), PROBS.log(), row_noise(torch.arange(1), 0)
    assert state_score("prob", log_probs, where, noise).tolist() == pytest.approx([0.5, 0.45, 0.6, 0.34])
    margins = [0.1, 0.0, 0.4, 0.01]
    assert state_score("margin", log_probs, where, noise).tolist() == pytest.approx(margins, abs=1e-6)
    h = [-sum(p * float(torch.tensor(p).log()) for p in row if p) for row in PROBS.tolist()]
    assert entropy(log_probs).tolist() == pytest.approx(h, abs=1e-6)
    by_entropy = state_score("entropy", log_probs, where, noise)
    assert by_entropy.tolist() == pytest.approx([float(torch.tensor(-x).exp()) for x in h], abs=1e-6)


@pytest.mark.parametrize(
    ("score", "expected"), [("prob", [2, 0, 1, 3]), ("margin", [2, 0, 3, 1]), ("entropy", [0, 1, 2, 3])]
)
def test_the_surest_position_is_first(score, expected):
    assert order(Confidence(score=score)) == [expected]


def test_a_random_score_is_any_order_of_the_row_and_another_in_each_row():
    orders = order(Confidence(score="random"), num=200)
    assert all(sorted(one) == [0, 1, 2, 3] for one in orders)
    assert len({tuple(one) for one in orders}) == 24
    assert orders == order(Confidence(score="random"), num=200)


def test_scores_are_computed_in_float32_where_a_network_predicts_in_bf16():
    """Two logits that are one number in bf16 after the softmax: 0.999 and 0.9992."""
    logits = torch.tensor([[0.0, 7.0, 0.0], [0.0, 7.25, 0.0]]).bfloat16()
    where = torch.ones(1, 2, dtype=torch.bool)
    assert logits.softmax(-1)[0, 1] == logits.softmax(-1)[1, 1]
    ranked = Confidence().rank(Reading(where, logits), a_step(1, 2))
    assert ranked.log_probs.dtype == torch.float32
    assert ranked.rank.tolist() == [[1, 0]]


def test_equal_scores_are_ranked_by_the_seed_alone():
    num, length = 300, 4
    where, scores = torch.ones(num, length, dtype=torch.bool), torch.zeros(num * length)
    noise = row_noise(torch.arange(num), "ties")
    ranks = ranking(where, scores, torch.empty(0), noise).rank
    assert len({tuple(row) for row in ranks.tolist()}) == 24
    some = torch.tensor([7, 200, 3])
    alone = ranking(where[some], scores[: 3 * length], torch.empty(0), noise.select(some)).rank
    assert torch.equal(alone, ranks[some])


def test_where_a_network_predicts_the_same_everywhere_the_seed_decides_and_not_its_rounding():
    """A text of masks alone, and positions that are relative: predictions differ by rounding, which a batch changes."""
    torch.manual_seed(0)
    backbone, num, length = randomised(DiT(4, 3, 16, 16, 2, 2, 8)).eval(), 3_000, 5
    first: list[Tensor] = []

    def on_step(event: Event) -> None:
        if event.index == 0:
            first.append((event.before != event.after).long().argmax(-1))

    together = generate(backbone, NOISE, Confidence(), empty(NOISE, num, length), length, 0, on_step).tokens
    counts = torch.bincount(first[0], minlength=length)
    assert chi_square_p(counts, torch.full((length,), num / length)) > FALSE_ALARM
    for row in torch.arange(40).split(1):
        alone = generate(backbone, NOISE, Confidence(), empty(NOISE, 1, length), length, row_noise(row, 0)).tokens
        assert torch.equal(alone, together[row])


@pytest.mark.parametrize("scores", [(-8.0, -8.1), (-10.0, -10.2), (0.5, 0.4995), (0.9999, 0.9995), (0.001, 0.00099)])
def test_what_differs_by_more_than_rounding_is_told_apart(scores):
    """Entropies of a large vocabulary, whose exp(-H) is small, and probabilities near 0 and 1."""
    high, low = (torch.tensor(score).exp() if score < 0 else torch.tensor(score) for score in scores)
    where = torch.ones(500, 2, dtype=torch.bool)
    table = torch.stack([low, high]).expand(500, 2).flatten()
    assert (ranking(where, table, torch.empty(0), row_noise(torch.arange(500), 0)).rank[:, 1] == 0).all()
    jitter = table * (1 + 1e-7 * torch.randn(1_000, generator=torch.Generator().manual_seed(0)))
    jitter = torch.where(torch.arange(1_000) % 2 == 0, jitter, low)
    first = (ranking(where, jitter, torch.empty(0), row_noise(torch.arange(500), 0)).rank[:, 1] == 0).sum()
    assert 150 < int(first) < 350


def test_decided_positions_rank_behind_all_others():
    where = torch.tensor([[True, False, True, False], [False, False, False, True]])
    ranked = ranking(where, torch.tensor([0.0, 0.3, 0.1]), torch.empty(0), row_noise(torch.arange(2), 0))
    assert ranked.rank[0, 2] == 0
    assert ranked.rank[0, 0] == 1
    assert ranked.rank[1, 3] == 0
    assert torch.equal(ranked.first(torch.tensor([9, 9])), where)
    assert torch.equal(ranked.first(torch.tensor([0, 0])), torch.zeros_like(where))
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    assert ranked.by_rank(values)[0, :2].tolist() == [3.0, 1.0]


# Tokens


def test_argmax_takes_the_likeliest_token():
    sampler, probs = Confidence(token="argmax"), PROBS[[0, 2]]
    tokens = generate(network(5, probs), NOISE, sampler, empty(NOISE, 5, 2), 2, 0).tokens
    assert (tokens == 0).all()


def test_the_repetition_penalty_counts_decided_tokens_alone():
    """Masks are no repeated tokens, and a given token is one."""
    probs = torch.tensor([[0.5, 0.5, 0.0, 0.0]] * 2)
    canvas = Canvas(torch.tensor([[0, 3]]).expand(2_000, -1), torch.tensor([True, False]).expand(2_000, -1))
    sampler = Confidence(repetition_penalty=2.0)
    drawn = generate(network(2_000, probs), NOISE, sampler, canvas, 1, 0).tokens[:, 1]
    # log 0.5 of the repeated token is doubled: 0.25 against 0.5
    assert float((drawn == 0).double().mean()) == pytest.approx(1 / 3, abs=0.05)


# Passes of the network


class Counting(FixedLogits):
    """Counts calls, rows, and rows of logits that were asked for."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits)
        self.calls, self.rows, self.read = 0, 0, 0

    def __call__(self, inputs):
        self.calls, self.rows = self.calls + 1, self.rows + len(inputs.x_t)
        prediction, counting = super().__call__(inputs), self

        class Read:
            def logits(self, where: Tensor) -> Tensor:
                counting.read += int(where.sum())
                return prediction.logits(where)

        return Read()


def counted(sampler: Sampler[Any], num_steps: int, canvas: Canvas) -> tuple[Tensor, Counting]:
    """Return the passes of each row, and the network."""
    denoiser = Counting(PROBS[torch.arange(canvas.tokens.shape[1]) % 4].log().expand(*canvas.tokens.shape, -1))
    return generate(denoiser, NOISE, sampler, canvas, num_steps, 0).passes, denoiser


def prompts(length: int, *given: int) -> Canvas:
    fixed = torch.arange(length) < torch.tensor(given)[:, None]
    return Canvas(torch.zeros(len(given), length, dtype=torch.int64), fixed)


@pytest.mark.parametrize(("num_steps", "expected"), [(1, [1, 1, 0]), (3, [3, 2, 0]), (8, [8, 2, 0]), (50, [8, 2, 0])])
def test_a_step_in_which_nothing_is_decided_costs_no_pass(num_steps, expected):
    """8, 2 and 0 free positions: at most a pass for each token and for each step."""
    passes, denoiser = counted(Confidence(), num_steps, prompts(8, 0, 6, 8))
    assert passes.tolist() == expected
    assert denoiser.rows == sum(expected)


def test_ancestral_steps_cost_a_pass_for_each_token_at_most_and_read_only_what_moves():
    canvas = prompts(8, 0, 6, 8)
    passes, denoiser = counted(parts.sampler("ancestral"), 1_000, canvas)
    assert 6 <= int(passes[0]) <= 8
    assert passes[1:].tolist() in ([2, 0], [1, 0])
    assert denoiser.read == 10  # each token's logits once
    assert denoiser.rows == int(passes.sum())


def test_first_hitting_costs_a_pass_for_each_token():
    passes, denoiser = counted(parts.sampler("first_hitting"), 3, prompts(8, 0, 6, 8))
    assert passes.tolist() == [8, 2, 0]
    assert denoiser.read == 10


def test_the_network_reads_the_time_of_the_share_that_is_masked():
    """Under the cosine schedule, at which half of the tokens are masked at t = 2/3."""
    times, noise = [], Absorbing(Cosine(), 4, 3)

    class Timed(FixedLogits):
        def __call__(self, inputs):
            times.append(inputs.t.tolist())
            return super().__call__(inputs)

    canvas = empty(noise, 1, 4)
    generate(Timed(PROBS.log()[None]), noise, Confidence(), canvas, 2, 0)
    assert times[0] == pytest.approx([1.0])
    assert float(noise.alpha(torch.tensor(times[1], dtype=torch.float64))[0]) == pytest.approx(0.5)
