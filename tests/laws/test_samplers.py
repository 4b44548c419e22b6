"""Samplers: with the exact predictor the samples have the data's distribution, and what is given stays.

The distribution of T steps of ancestral sampling is computed exactly, by pushing all V^L states through the posterior,
so that its distance to the data and its fall with T carry no sampling noise. That the code draws from this distribution
is then a chi-square test.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from dlmkit.processes.score import log_score
from dlmkit.samplers.filtering import Filter, categorical, keep_top_k, keep_top_p
from torch import Tensor

from dlmkit.backbones.hf import HFBackbone
from dlmkit.laws import samplers as laws
from dlmkit.laws.findings import FALSE_ALARM
from dlmkit.laws.samplers import Exact, distribution_after, step_rows, total_variation
from dlmkit.processes.base import ForwardProcess
from dlmkit.randomness import generator_for
from dlmkit.samplers import ancestral, filtering, score_analytic
from dlmkit.samplers.ancestral import Ancestral
from dlmkit.samplers.autoregressive import Autoregressive
from dlmkit.samplers.base import Sampler, Step, check_agreement, generate
from dlmkit.samplers.score_analytic import tweedie
from dlmkit.samplers.score_tau_leaping import euler
from dlmkit.types import Canvas
from laws import parts
from laws.asserting import asserting
from laws.enumeration import Source, TablePredictor, all_sequences, chi_square_p, index_of, random_source
from laws.parts import MASK_ID, VOCAB_SIZE

LENGTH = 3

SCORED = ("absorbing", "uniform")
"""Noise under which there are scores."""
NOISES = [pytest.param(*pair, id="-".join(pair)) for pair in parts.noisy_processes()]
DIFFUSION_SAMPLERS = [name for name in parts.names("sampler") if parts.sampler(name).expects != "next"]
RUNS = [
    pytest.param(name, process, id=f"{name}-{process}")
    for name in DIFFUSION_SAMPLERS
    for process in parts.names("process")
    if parts.process(process).noises and parts.fits(name, process)
]
FAITHFUL = [run for run in RUNS if parts.sampler(run.values[0]).faithful]


def source() -> Source:
    return random_source(LENGTH, VOCAB_SIZE, MASK_ID)


def empty(num: int, length: int = LENGTH) -> Canvas:
    return laws.empty(parts.process("absorbing"), num, length)


def counts_of(tokens: Tensor) -> Tensor:
    return laws.counts_of(tokens, VOCAB_SIZE)


# The chain, exactly


@pytest.mark.parametrize(("process", "schedule"), NOISES)
def test_ancestral_chain_tends_to_the_data(process, schedule):
    data, noise = source(), parts.process(process, schedule)
    distances = [
        total_variation(
            distribution_after(num_steps, Exact(data, noise), noise, parts.sampler("ancestral")), data.joint.flatten()
        )
        for num_steps in (1, 16, 64, 256)
    ]
    # The chain starts from pure noise, the data's noisy marginal at t = 1 has alpha(1) of each token left.
    left = LENGTH * float(noise.alpha(torch.ones(1, dtype=torch.float64)))
    assert distances[3] < 0.02 + left
    assert distances[0] > 0.1  # one step draws the positions independently, which is wrong for this source
    # First-order convergence: the error is that of drawing two positions in one step.
    for coarse, fine in ((distances[1], distances[2]), (distances[2], distances[3])):
        assert fine < 0.35 * coarse + left


@pytest.mark.parametrize("schedule", parts.names("schedule"))
def test_absorbing_error_is_at_most_the_chance_of_two_tokens_in_a_step(schedule):
    data, noise, sampler = source(), parts.process("absorbing", schedule), parts.sampler("ancestral")
    for num_steps in (4, 32):
        unmasked = noise.alpha(sampler.times(num_steps)).diff()
        together = LENGTH * (LENGTH - 1) / 2 * float((unmasked**2).sum())
        left = LENGTH * float(noise.alpha(torch.ones(1, dtype=torch.float64)))
        after = distribution_after(num_steps, Exact(data, noise), noise, sampler)
        assert total_variation(after, data.joint.flatten()) <= together + left


@pytest.mark.parametrize("num_steps", [1, 3, 10])
@pytest.mark.parametrize("process", [name for name in parts.names("process") if parts.process(name).noises])
def test_ancestral_draws_from_its_chain(process, num_steps):
    data, noise, sampler = source(), parts.process(process), parts.sampler("ancestral")
    expected = distribution_after(num_steps, Exact(data, noise), noise, sampler)
    num = 20_000
    canvas = generate(Exact(data, noise), noise, sampler, empty(num), num_steps, generator_for("cpu", num_steps))
    assert chi_square_p(counts_of(canvas.tokens), expected * num) > FALSE_ALARM


@pytest.mark.parametrize(("process", "schedule"), NOISES)
def test_one_ancestral_step_follows_the_posterior(process, schedule):
    """From every state that can occur, with nothing given."""
    data, noise = source(), parts.process(process, schedule)
    s, t, repeats = 0.35, 0.6, 2_000
    at_t = data.marginal(noise, torch.tensor([t], dtype=torch.float64)).flatten()
    states = all_sequences(LENGTH, VOCAB_SIZE)[at_t > 0][::5]
    expected = step_rows(Exact(data, noise), noise, states, s, t)
    x_t = states.repeat_interleave(repeats, 0)
    times = (torch.full((len(x_t),), time, dtype=torch.float64) for time in (t, s))
    tokens, _ = parts.sampler("ancestral").step(
        Exact(data, noise),
        noise,
        x_t,
        torch.zeros_like(x_t, dtype=torch.bool),
        Step(0, 1, *times),
        None,
        generator_for("cpu", "step"),
    )
    for state, row in zip(tokens.split(repeats), expected, strict=True):
        assert chi_square_p(counts_of(state), row * repeats) > FALSE_ALARM


# Every sampler


@pytest.mark.parametrize("law", [laws.law_infilling, laws.law_draws_repeat], ids=lambda law: law.__name__)
@pytest.mark.parametrize(("name", "process"), RUNS)
def test_sampler(name, process, law):
    asserting(law)(parts.sampler(name), parts.process(process))


@pytest.mark.parametrize(("name", "process"), RUNS)
def test_samples_have_the_datas_distribution(name, process):
    asserting(laws.law_distribution)(parts.sampler(name), parts.process(process))


@pytest.mark.parametrize(("name", "process"), RUNS)
def test_given_tokens_never_change_and_no_mask_is_left(name, process):
    asserting(laws.law_given_tokens_stay)(parts.sampler(name), parts.process(process))


@pytest.mark.parametrize(("name", "process"), RUNS)
def test_tokens_are_drawn_in_float64(name, process):
    asserting(laws.law_tail)(parts.sampler(name), parts.process(process, vocab_size=laws.WIDE))


@pytest.mark.parametrize("law", [laws.law_distribution, laws.law_given_tokens_stay, laws.law_draws_repeat])
def test_autoregressive(law):
    asserting(law)(parts.sampler("autoregressive"), parts.process("none"))
    asserting(laws.law_tail)(parts.sampler("autoregressive"), parts.process("none", vocab_size=laws.WIDE))


@pytest.mark.parametrize("name", parts.names("sampler"))
def test_times_run_from_noise_to_data(name):
    asserting(laws.law_times)(parts.sampler(name))


def test_no_step_is_refused():
    with pytest.raises(ValueError, match="num_steps 0"):
        generate(
            Exact(source(), parts.process("absorbing")),
            parts.process("absorbing"),
            parts.sampler("ancestral"),
            empty(1),
            0,
            generator_for("cpu", 0),
        )


# Scores


@pytest.mark.parametrize(("process", "schedule"), [pair for pair in NOISES if pair.values[0] in SCORED])
def test_analytic_step_is_the_ancestral_one_with_the_exact_scores(process, schedule):
    """Undoing the noise in the scores is the posterior, position by position, at every pair of times."""
    data, noise = source(), parts.process(process, schedule)
    for t, s in ((0.9, 0.6), (0.5, 0.45), (0.2, 0.0)):
        at_t = data.marginal(noise, torch.tensor([t], dtype=torch.float64)).flatten()
        states = all_sequences(LENGTH, VOCAB_SIZE)[at_t > 0]
        times = [torch.full((len(states),), time, dtype=torch.float64) for time in (s, t)]
        loo, scores = (
            data.exact_predictor(noise, states, times[1]).table,
            data.exact_score(noise, states, times[1]).table,
        )
        for i in range(LENGTH):
            z, rows = states[:, i], noise.may_change(states[:, i])
            posterior = noise.posterior(z, noise.log_x0(loo[:, i], z).exp(), *times)[rows]
            alpha_s, alpha_t = (noise.alpha(time)[rows] for time in times)
            log_s = log_score(scores[rows, i], z[rows], noise, alpha_t)
            move, weights = tweedie(log_s, z[rows], noise, alpha_s, alpha_t)
            stay = posterior.gather(-1, z[rows, None])[:, 0]
            torch.testing.assert_close(move, 1 - stay, rtol=1e-8, atol=1e-10)
            others = posterior.scatter(-1, z[rows, None], 0.0)
            torch.testing.assert_close(
                weights / weights.sum(-1, keepdim=True), others / others.sum(-1, keepdim=True), rtol=1e-8, atol=1e-10
            )


@pytest.mark.parametrize("process", ["absorbing", "uniform"])
def test_euler_and_analytic_steps_agree_to_first_order(process):
    """The chance of a change in a short step, and where to: the difference falls with the square of the step."""
    data, noise = source(), parts.process(process, "cosine")
    states = all_sequences(LENGTH, VOCAB_SIZE)
    states = states[(states != MASK_ID).all(-1)] if process == "uniform" else states[states[:, 0] == MASK_ID]
    t = torch.full((len(states),), 0.6, dtype=torch.float64)
    alpha_t = noise.alpha(t)
    log_s = log_score(data.exact_score(noise, states, t).table[:, 0], states[:, 0], noise, alpha_t)
    gaps = []
    for length in (1e-2, 1e-3):
        alpha_s = noise.alpha(t - length)
        chances = []
        for move, weights in (
            tweedie(log_s, states[:, 0], noise, alpha_s, alpha_t),
            euler(log_s, noise, t, torch.full_like(t, length), torch.arange(len(t))),
        ):
            chances.append(move[:, None] * weights / weights.sum(-1, keepdim=True))
        gaps.append(float((chances[0] - chances[1]).abs().max()))
    assert gaps[0] < 2e-3
    assert gaps[1] < 0.02 * gaps[0]


@pytest.mark.parametrize("name", ["score_analytic", "score_tau_leaping"])
@pytest.mark.parametrize(("process", "schedule"), [pair for pair in NOISES if pair.values[0] in SCORED])
def test_score_samplers_with_a_wrong_network_leave_no_mask(name, process, schedule):
    """Scores of any size, under every schedule: probabilities stay probabilities, and given tokens stay."""
    noise, num = parts.process(process, schedule), 300
    table = 3 * torch.randn(VOCAB_SIZE**LENGTH, LENGTH, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    table[..., MASK_ID] = float("-inf")
    fixed = torch.tensor([False, False, True]).expand(num, -1)
    canvas = Canvas(torch.full((num, LENGTH), 3), fixed)
    done = generate(
        lambda x_t, t: TablePredictor(table[index_of(x_t, VOCAB_SIZE)]),
        noise,
        parts.sampler(name),
        canvas,
        4,
        generator_for("cpu", "wrong"),
    )
    assert (done.tokens != MASK_ID).all()
    assert (done.tokens[:, 2] == 3).all()


@pytest.mark.parametrize("name", ["score_analytic", "score_tau_leaping"])
def test_score_samplers_draw_whether_apart_from_which(name, monkeypatch: pytest.MonkeyPatch):
    """Only positions that change are drawn for, in float64, by weights that do not hold the step size."""
    handed = []

    def spy(probs: Tensor, generator: torch.Generator) -> Tensor:
        handed.append(probs)
        return categorical(probs, generator)

    monkeypatch.setattr(score_analytic, "categorical", spy)
    noise = parts.process("absorbing")
    table = torch.tensor([0.9, 0.0, 0.1 - 1e-7, 1e-7]).log().expand(1_000_000, 1, VOCAB_SIZE) + torch.tensor(3.0).log()
    x_t = torch.full((1_000_000, 1), MASK_ID)
    t = torch.full((1_000_000,), 0.5, dtype=torch.float64)
    nothing = torch.zeros_like(x_t, dtype=torch.bool)
    step = Step(0, 2, t, t - 1e-5)
    parts.sampler(name).step(lambda *_: TablePredictor(table), noise, x_t, nothing, step, None, generator_for("cpu", 0))
    (probs,) = handed
    assert probs.dtype == torch.float64
    assert 0 < len(probs) < 100  # 20 expected
    share = probs / probs.sum(-1, keepdim=True)
    expected = torch.tensor([0.9, 0.0, 0.1 - 1e-7, 1e-7], dtype=torch.float64)
    torch.testing.assert_close(share, expected.expand(len(probs), -1), rtol=1e-5, atol=0)


def test_scores_are_refused_under_other_noise():
    with pytest.raises(ValueError, match="process=Hybrid"):
        parts.sampler("score_analytic").step(
            Exact(source(), parts.process("hybrid")),
            parts.process("hybrid"),
            torch.full((1, LENGTH), MASK_ID),
            torch.zeros(1, LENGTH, dtype=torch.bool),
            Step(0, 2, *torch.tensor([[0.5], [0.4]], dtype=torch.float64)),
            None,
            generator_for("cpu", 0),
        )


# Self-correction


def corrected(num_rounds: int, sampler: Sampler, start: Tensor, fixed: Tensor, noise: ForwardProcess) -> list[Tensor]:
    rounds = [start]
    for index in range(num_rounds):
        rounds.append(sampler.correct(Exact(source(), noise), noise, rounds[-1], fixed, generator_for("cpu", index)))
    return rounds


@pytest.mark.parametrize("process", ["hybrid", "uniform"])
def test_correction_climbs_to_likelier_text(process):
    """At temperature 0 with hardly any noise each round replaces a token by a likelier one given the others.

    So log p never falls, one token changes at a time, and the end is a sequence that no single change improves.
    """
    data, noise = source(), parts.process(process)
    sampler = parts.sampler("self_correcting", correction_temperature=0.0, correction_time=1e-9)
    start = data.sequences
    nothing = torch.zeros_like(start, dtype=torch.bool)
    rounds = corrected(20, sampler, start, nothing, noise)
    for before, after in pairwise(rounds):
        assert ((before != after).sum(-1) <= 1).all()
        assert (data.joint[tuple(after.T)] >= data.joint[tuple(before.T)]).all()
    end = rounds[-1]
    assert torch.equal(end, rounds[-2])
    for i in range(LENGTH):
        for token in range(VOCAB_SIZE):
            other = end.clone()
            other[:, i] = token
            assert (data.joint[tuple(other.T)] <= data.joint[tuple(end.T)]).all()
    assert data.joint[tuple(end.T)].log().mean() > data.joint[tuple(start.T)].log().mean() + 0.5


@pytest.mark.parametrize("per_round", [1, 2, 9])
def test_correction_takes_the_most_confident_proposals(per_round):
    """A round takes over the proposals of highest probability among those that differ, and only so many."""
    data, noise = source(), parts.process("hybrid")
    sampler = parts.sampler("self_correcting", correction_temperature=0.0, tokens_per_correction=per_round)
    start = data.sequences
    (_, after) = corrected(1, sampler, start, torch.zeros_like(start, dtype=torch.bool), noise)
    table = Exact(data, noise)(start, torch.full((len(start),), 0.01, dtype=torch.float64)).table.exp()
    best, proposal = table.max(-1)
    best = best.masked_fill(proposal == start, 0.0)
    for row in range(len(start)):
        ranked = [i for i in best[row].argsort(descending=True).tolist() if best[row, i] > 0][:per_round]
        expected = start[row].clone()
        expected[ranked] = proposal[row, ranked]
        assert torch.equal(after[row], expected)


def test_correction_leaves_given_tokens_and_absorbing_noise_alone():
    start = source().sequences
    fixed = torch.rand(start.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    sampler = parts.sampler("self_correcting", correction_temperature=2.0, tokens_per_correction=3)
    (_, after) = corrected(1, sampler, start, fixed, parts.process("hybrid"))
    assert torch.equal(after[fixed], start[fixed])
    assert not torch.equal(after, start)
    (_, after) = corrected(1, sampler, start, torch.zeros_like(fixed), parts.process("absorbing"))
    assert torch.equal(after, start)


def test_no_correction_is_ancestral():
    data, noise = source(), parts.process("hybrid")
    samples = [
        generate(Exact(data, noise), noise, sampler, empty(50), 8, generator_for("cpu", 0)).tokens
        for sampler in (parts.sampler("self_correcting", num_corrections=0), parts.sampler("ancestral"))
    ]
    assert torch.equal(*samples)


@pytest.mark.parametrize(
    "changes",
    [{"num_corrections": -1}, {"tokens_per_correction": 0}, {"correction_time": 0.0}, {"correction_temperature": -1.0}],
)
def test_nonsense_corrections_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes)).removeprefix("correction_")):
        parts.sampler("self_correcting", **changes)


# Sharpening


def test_temperature_zero_is_argmax():
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    kept = Filter(0.0, None, 1.0)(logits)
    assert torch.equal(kept.isfinite().sum(-1), torch.ones(50, dtype=torch.int64))
    assert torch.equal(kept.argmax(-1), logits.argmax(-1))
    assert torch.equal(categorical(kept.softmax(-1), generator_for("cpu", 0)), logits.argmax(-1))


def test_temperature_zero_fills_in_the_most_likely_tokens():
    """One position at a time the result is known: the argmax of each conditional."""
    data, noise = source(), parts.process("absorbing")
    tokens = torch.tensor([[2, MASK_ID, 3]])
    canvas = Canvas(tokens, tokens != MASK_ID)
    sampler = parts.sampler("ancestral", temperature=0.0)
    done = generate(Exact(data, noise), noise, sampler, canvas, 4, generator_for("cpu", 0))
    assert int(done.tokens[0, 1]) == int(data.joint[2, :, 3].argmax())


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(temperature):
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    probs = logits.softmax(-1) ** (1 / temperature)
    torch.testing.assert_close(Filter(temperature, None, 1.0)(logits).softmax(-1), probs / probs.sum(-1, keepdim=True))


@pytest.mark.parametrize("k", [1, 3, 7, 100])
def test_top_k_keeps_exactly_the_k_largest(k):
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    logits[0] = 0.0  # all tied
    kept = keep_top_k(logits, k)
    assert (kept.isfinite().sum(-1) == min(k, 7)).all()
    assert torch.equal(kept[kept.isfinite()], logits[kept.isfinite()])
    smallest_kept = kept.masked_fill(kept.isinf(), float("inf")).amin(-1, keepdim=True)
    assert (logits[1:][kept[1:].isinf()] < smallest_kept.expand_as(logits)[1:][kept[1:].isinf()]).all()


def test_top_p_keeps_the_token_that_crosses():
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]], dtype=torch.float64).log()
    for p, expected in (
        (0.01, {1}),
        (0.49, {1}),
        (0.51, {1, 3}),
        (0.74, {1, 3}),
        (0.76, {1, 2, 3}),
        (0.95, {0, 1, 2, 3}),
    ):
        assert set(keep_top_p(logits, p).isfinite()[0].nonzero()[:, 0].tolist()) == expected


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    logits = 3 * torch.randn(200, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for p in (0.1, 0.5, 0.9, 0.99):
        kept = keep_top_p(logits, p).isfinite()
        probs = logits.softmax(-1)
        total = (probs * kept).sum(-1)
        assert (total >= p - 1e-12).all()
        least = torch.where(kept, probs, torch.inf).amin(-1)
        assert (total - least < p).all()  # one fewer would not do
        assert (torch.where(kept, -torch.inf, probs).amax(-1) <= least).all()


def test_filters_apply_in_order():
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0]], dtype=torch.float64)
    # At temperature 2, top-2 leaves 0.62 and 0.38, of which top-p 0.6 keeps the first.
    assert Filter(2.0, 2, 0.6)(logits).isfinite().tolist() == [[True, False, False, False]]
    assert Filter(2.0, None, 0.6)(logits).isfinite().tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("arguments", [(-1.0, None, 1.0), (1.0, 0, 1.0), (1.0, None, 0.0), (1.0, None, 1.1)])
def test_nonsense_is_refused(arguments):
    with pytest.raises(ValueError, match=r"temperature|top_k|top_p"):
        Filter(*arguments)


def test_the_mask_stays_forbidden_through_every_filter():
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    logits[:, MASK_ID] = float("-inf")
    for sharpen in (Filter(0.0, None, 1.0), Filter(0.7, 4, 1.0), Filter(1.3, None, 0.99), Filter(1.0, 4, 1.0)):
        assert (categorical(sharpen(logits).softmax(-1), generator_for("cpu", 0)) != MASK_ID).all()


# The draw


def test_categorical_follows_its_probabilities():
    weights = torch.tensor([3.0, 0.0, 1.0, 0.01, 5.0])
    num = 100_000
    counts = torch.bincount(categorical(weights.expand(num, -1), generator_for("cpu", 0)), minlength=5)
    assert chi_square_p(counts, weights.double() / weights.double().sum() * num) > FALSE_ALARM


def test_categorical_keeps_the_tail():
    """A thousand tokens of 1e-7 each beside one that takes the rest: 10 of 100,000 draws.

    The count is Poisson: zero with probability 5e-5, 30 or more with 1e-6.
    """
    tail, rows, blocks = 1_000, 10_000, 10
    probs = torch.full((1 + tail,), 1e-7)
    probs[0] = 1.0
    generator = generator_for("cpu", "tail")
    drawn = sum(int((categorical(probs.expand(rows, -1), generator) != 0).sum()) for _ in range(blocks))
    assert 0 < drawn < 30


def test_the_race_is_run_in_float64(monkeypatch: pytest.MonkeyPatch):
    """float32 uniforms are multiples of 2^-24, so that no racer is ever nearer than 6e-8: the tail of 1e-8 is gone."""
    races = []
    exponential = Tensor.exponential_

    def spy(self: Tensor, *args, **kwargs) -> Tensor:
        races.append(exponential(self, *args, **kwargs))
        return races[-1]

    monkeypatch.setattr(Tensor, "exponential_", spy)
    categorical(torch.ones(100_000, 4), generator_for("cpu", 0))
    (race,) = races
    assert race.dtype == torch.float64
    small = race[race < 2**-8].double()
    assert len(small) > 1_000
    for bits in (24, 32):
        steps = small * 2**bits
        assert float((steps - steps.round()).abs().mean()) > 0.2, f"the race has {bits} bits"


def test_which_token_is_drawn_apart_from_whether_it_changes(monkeypatch: pytest.MonkeyPatch):
    """A token's share is never multiplied by the step size before the draw: with dt = 1e-6 the tail would be lost."""
    handed = []

    def spy(probs: Tensor, generator: torch.Generator) -> Tensor:
        handed.append(probs)
        return categorical(probs, generator)

    monkeypatch.setattr(ancestral, "categorical", spy)
    assert filtering.categorical is categorical
    noise = parts.process("absorbing")
    table = torch.tensor([0.9, 0.0, 0.1 - 1e-7, 1e-7], dtype=torch.float64).log().expand(1_000_000, 1, VOCAB_SIZE)
    x_t = torch.full((1_000_000, 1), MASK_ID)
    t = torch.full((1_000_000,), 0.5, dtype=torch.float64)
    parts.sampler("ancestral").step(
        lambda *_: TablePredictor(table),
        noise,
        x_t,
        torch.zeros_like(x_t, dtype=torch.bool),
        Step(0, 1, t, t - 1e-5),
        None,
        generator_for("cpu", 0),
    )
    (probs,) = handed
    assert 0 < len(probs) < 100  # 20 expected
    given_change = probs / probs.sum(-1, keepdim=True)
    torch.testing.assert_close(given_change, table[0].exp().expand(len(probs), -1), rtol=1e-9, atol=0)


# The autoregressive sampler


def tiny_causal(seed: int = 0) -> HFBackbone:
    torch.manual_seed(seed)
    backbone = HFBackbone(
        vocab_size=VOCAB_SIZE,
        mask_id=MASK_ID,
        bos_id=0,
        causal=True,
        shift=True,
        bos="prepend",
        attention="sdpa",
        attention_with_mask=None,
        gradient_checkpointing=False,
        lora={"rank": 0},
        name=None,
        config={"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 8},
    )
    for parameter in backbone.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return backbone.eval()


@torch.no_grad()
def own_chain(backbone: HFBackbone) -> Tensor:
    """The product of the model's own next-token probabilities for every sequence, [V^L]."""
    x = all_sequences(LENGTH, VOCAB_SIZE)
    logits = backbone.model(torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)).logits.double()
    logits[..., MASK_ID] = float("-inf")
    return logits.log_softmax(-1).gather(-1, x[..., None])[..., 0].sum(-1).exp()


def test_autoregressive_samples_have_the_models_distribution():
    backbone, num = tiny_causal(), 20_000
    expected = own_chain(backbone)
    assert float(expected.sum()) == pytest.approx(1.0)
    canvas = generate(
        backbone, parts.process("none"), parts.sampler("autoregressive"), empty(num), 1, generator_for("cpu", 0)
    )
    assert chi_square_p(counts_of(canvas.tokens), expected * num) > FALSE_ALARM


def test_autoregressive_prompt_is_kept_and_conditioned_on():
    backbone, num = tiny_causal(), 20_000
    prompt = torch.tensor([3, MASK_ID, MASK_ID]).repeat(num, 1)
    canvas = Canvas(prompt, (torch.arange(LENGTH) < 1).expand(num, -1))
    done = generate(
        backbone, parts.process("none"), parts.sampler("autoregressive"), canvas, 99, generator_for("cpu", 0)
    )
    expected = own_chain(backbone) * (all_sequences(LENGTH, VOCAB_SIZE)[:, 0] == 3)
    assert (done.tokens[:, 0] == 3).all()
    assert chi_square_p(counts_of(done.tokens), expected / expected.sum() * num) > FALSE_ALARM


def test_autoregressive_temperature_zero_is_greedy():
    backbone = tiny_causal()
    sampler = parts.sampler("autoregressive", temperature=0.0)
    done = generate(backbone, parts.process("none"), sampler, empty(2), 1, generator_for("cpu", 0)).tokens
    with torch.no_grad():
        logits = backbone.model(torch.cat([torch.zeros(2, 1, dtype=torch.int64), done[:, :-1]], 1)).logits
    logits[..., MASK_ID] = float("-inf")
    assert torch.equal(done, logits.argmax(-1))


@pytest.mark.parametrize(
    "fixed", [[[False, True, False]], [[True, False, True]], [[True, False, False], [True, True, False]]]
)
def test_autoregressive_refuses_infilling(fixed):
    fixed = torch.tensor(fixed)
    canvas = Canvas(torch.zeros_like(fixed, dtype=torch.int64), fixed)
    with pytest.raises(ValueError, match="left to right"):
        generate(
            tiny_causal(), parts.process("none"), parts.sampler("autoregressive"), canvas, 3, generator_for("cpu", 0)
        )


# Agreement

KINDS = {"next": "next", "score": "score"}
"""The rest are posteriors of x_0."""


@pytest.mark.parametrize("sampler", parts.names("sampler"))
@pytest.mark.parametrize("objective", parts.names("objective"))
def test_samplers_of_the_other_kind_are_refused(sampler, objective):
    predicts, expects = parts.objective(objective).predicts, parts.sampler(sampler).expects
    for name in parts.names("process"):
        if not parts.accepts(objective, name):
            continue
        if KINDS.get(predicts, "posterior") == KINDS.get(expects, "posterior"):
            check_agreement(predicts, parts.sampler(sampler), parts.process(name))
        else:
            with pytest.raises(ValueError, match=f"sampler={sampler}"):
                check_agreement(predicts, parts.sampler(sampler), parts.process(name))


def test_plain_posterior_will_do_under_absorbing_noise_only():
    check_agreement("x0", Ancestral(1.0, None, 1.0), parts.process("absorbing"))
    with pytest.raises(ValueError, match="x0_loo"):
        check_agreement("x0", Ancestral(1.0, None, 1.0), parts.process("uniform"))
    with pytest.raises(ValueError, match="next"):
        check_agreement("x0", Autoregressive(1.0, None, 1.0), parts.process("absorbing"))
