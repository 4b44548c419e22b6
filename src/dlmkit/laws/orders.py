"""Samplers that decide positions by a rule: the exact law of the algorithm, enumerated rather than sampled.

Where the positions of a step depend on the state alone, the probability of every text is a product of predictions, so
that "the samples have the data's distribution" is an equation, to rounding.

Shapes: B batch, L length, V vocabulary (small), R states that can be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlmkit.evaluation.duel import decided_in, duel
from dlmkit.generation import Event, generate
from dlmkit.laws.denoisers import FixedLogits, exact_denoiser
from dlmkit.laws.findings import FALSE_ALARM, Finding, at_least, at_most, holds, law
from dlmkit.laws.samplers import counts_of, empty, total_variation
from dlmkit.laws.source import Source, all_sequences, index_of
from dlmkit.laws.statistics import chi_square_p
from dlmkit.laws.toys import LENGTH, toy_source
from dlmkit.processes.base import ForwardProcess
from dlmkit.randomness import RowNoise, row_noise
from dlmkit.samplers.base import Reading, Sampler, Step, read
from dlmkit.samplers.confidence import Confidence
from dlmkit.samplers.entropy_bound import EntropyBound
from dlmkit.samplers.ordered import Ordered
from dlmkit.samplers.p2 import P2
from dlmkit.samplers.ranking import entropy
from dlmkit.types import Canvas, Denoiser

ROUNDING = 1e-12
"""What float64 sums of the toy's probabilities may miss."""

SEEDS = (0, 1, 2)
NUM_SAMPLES = 5_000


@dataclass(frozen=True)
class Order:
    """The law of a sampler, enumerated.

    Attributes:
        law: probability of each text in the order of `all_sequences`, float64 [V^L].
        most: the most positions of a text that one step decides.
    """

    law: Tensor
    most: int


def order_of(
    sampler: Sampler[Any], process: ForwardProcess, denoiser: Denoiser, num_steps: int, length: int, seed: int
) -> Order:
    """Push all states through the sampler's choice of positions, and the product of the predictions there.

    Every state has the noise of one row. The token that the sampler draws is not looked at.
    """
    texts = all_sequences(length, process.vocab_size)
    canvas, noise = empty(process, 1, length), row_noise(torch.tensor([seed]), "order").seeds
    tokens, now, state = canvas.tokens, torch.ones(1, dtype=torch.float64), sampler.init(canvas)
    finished, most = torch.zeros(len(texts), dtype=torch.float64), 0
    num_steps = sampler.num_steps(canvas, num_steps)
    for index in range(num_steps):
        fixed = torch.zeros_like(tokens, dtype=torch.bool)
        going = sampler.undecided(process, tokens, fixed, state).any(-1)
        finished.index_add_(0, index_of(tokens[~going], process.vocab_size), now[~going])
        left = going.nonzero()[:, 0]
        if not len(left):
            return Order(finished, most)
        tokens, now, state, fixed = tokens[left], now[left], sampler.select(state, left), fixed[left]
        t, s = sampler.times(num_steps)[index : index + 2, None].expand(2, len(tokens))
        step = Step(index, num_steps, t, s, fixed, fixed, RowNoise(noise.expand(len(tokens)), index))
        done = sampler.step(denoiser, process, tokens, step, state)
        decided = decided_in(sampler, process, tokens, fixed, state, done)
        most = max(most, int(decided.sum(-1).max()))
        reached = _moved(tokens, decided, done.reading, process.vocab_size) * now[:, None]
        after = (reached.sum(0) > 0).nonzero()[:, 0]
        # States that lead to the same text are one, whichever of them the next state is taken from.
        tokens, state = texts[after], sampler.select(done.state, reached[:, after].argmax(0))
        now = reached.sum(0)[after]
    return Order(finished.index_add_(0, index_of(tokens, process.vocab_size), now), most)


def _moved(tokens: Tensor, decided: Tensor, reading: Reading | None, vocab_size: int) -> Tensor:
    """Return P(text after | state), [R, V^L]: the prediction where a position was decided, what is there elsewhere."""
    factors = torch.nn.functional.one_hot(tokens, vocab_size).double()
    if reading is not None and decided.any():
        factors[decided] = reading.logits[decided[reading.where]].double().softmax(-1)
    out = torch.ones(len(tokens), 1, dtype=torch.float64)
    for factor in factors.unbind(1):
        out = (out[:, :, None] * factor[:, None, :]).flatten(1)
    return out


def expected_excess(sampler: Sampler[Any], process: ForwardProcess, source: Source, num_steps: int, seed: int) -> float:
    """Return the mean over the data of sum_i H_i - max_i H_i of the positions decided in each step, summed; nats.

    H_i is the entropy of the exact prediction. Deciding S together costs sum_i H_i - H(S), which is not more.
    """
    texts, total = source.sequences, torch.zeros(len(source.sequences), dtype=torch.float64)

    def on_step(event: Event) -> None:
        if event.reading is None:
            return
        decided = event.before != event.after
        values = torch.zeros(decided.shape, dtype=torch.float64)
        values[decided] = entropy(event.reading.logits[decided[event.reading.where]].double().log_softmax(-1))
        total[event.rows] += values.sum(-1) - values.amax(-1)

    denoiser = exact_denoiser(sampler, process, source)
    duel(denoiser, process, sampler, texts, num_steps, noise=_same_row(len(texts), seed), on_step=on_step)
    return float((source.probs * total).sum())


def _same_row(num: int, seed: int) -> RowNoise:
    return RowNoise(row_noise(torch.tensor([seed]), "order").seeds.expand(num))


def _no_likelihood(sampler: Sampler[Any], process: ForwardProcess) -> str | None:
    return None if sampler.has_likelihood else "its samples have no known probability (has_likelihood is False)"


def only(*kinds: type) -> Callable[[Sampler[Any], ForwardProcess], str | None]:
    """Return the condition of a law that a sampler is of one of the kinds."""
    names = " or ".join(kind.__name__ for kind in kinds)
    return lambda sampler, process: None if isinstance(sampler, kinds) else f"it is no {names}"


@law(unless=_no_likelihood)
def law_exact_order(sampler: Sampler[Any], process: ForwardProcess) -> Iterator[Finding]:
    """The enumerated law: exact where one position is decided at a time, else as near as the entropies say.

    KL(data || samples) is the mean over the data of what deciding each set S together costs, sum_i H_i - H(S), at most
    sum_i H_i - max_i H_i (arXiv 2505.24857).
    """
    source = toy_source(process)
    denoiser, data = exact_denoiser(sampler, process, source), source.joint.flatten()
    for num_steps in (1, 2, LENGTH):
        for seed in SEEDS:
            order = order_of(sampler, process, denoiser, num_steps, LENGTH, seed)
            distance = total_variation(order.law, data)
            if order.most == 1:
                yield at_most(
                    "one position at a time leaves the data's distribution as it is",
                    distance,
                    ROUNDING,
                    f"one position is decided in each of {num_steps} steps, and yet the samples are {distance:.3g}"
                    " (total variation) from the data",
                )
            apart = float((data * (data / order.law).log()).nan_to_num(0.0).sum())
            excess = expected_excess(sampler, process, source, num_steps, seed)
            yield at_most(
                "KL(data, samples) is at most the expected excess",
                apart - excess,
                ROUNDING,
                f"KL(data, samples) is {apart:.3g} nats in {num_steps} steps, what was decided together explains"
                f" {excess:.3g}",
            )


@law(unless=_no_likelihood)
def law_likelihood(sampler: Sampler[Any], process: ForwardProcess) -> Iterator[Finding]:
    """The likelihood (`evaluation.duel`) of all texts sums to 1 and is that of the enumerated law."""
    denoiser = exact_denoiser(sampler, process, toy_source(process))
    texts = all_sequences(LENGTH, process.vocab_size)
    texts = texts[(texts != process.mask_id).all(-1)] if process.mask_id is not None else texts
    for num_steps in (1, 2, LENGTH):
        for seed in SEEDS:
            noise = _same_row(len(texts), seed)
            probs = (-duel(denoiser, process, sampler, texts, num_steps, noise=noise).nll).exp()
            off = abs(float(probs.sum()) - 1.0)
            yield at_most(
                "likelihoods of all texts sum to 1",
                off,
                ROUNDING,
                f"the likelihoods of all texts sum to {float(probs.sum()):.6g} in {num_steps} steps: which positions"
                " are decided depends on drawn tokens, or tokens are not drawn from the network's distribution",
            )
            order = order_of(sampler, process, denoiser, num_steps, LENGTH, seed)
            error = float((probs - order.law[index_of(texts, process.vocab_size)]).abs().max())
            yield at_most("likelihood is the law", error, ROUNDING, "the likelihood is not that of the enumerated law")


@law(unless=_no_likelihood)
def law_draws_follow_the_order(sampler: Sampler[Any], process: ForwardProcess) -> Iterator[Finding]:
    """Samples in few steps have the enumerated law: tokens of one step are drawn independently, each from its own."""
    source = toy_source(process)
    denoiser, num_steps = exact_denoiser(sampler, process, source), 2
    orders = [order_of(sampler, process, denoiser, num_steps, LENGTH, seed) for seed in SEEDS]
    if any(not torch.equal(order.law, orders[0].law) for order in orders):  # positions are drawn too
        num_steps = LENGTH
        orders = [order_of(sampler, process, denoiser, num_steps, LENGTH, SEEDS[0])]
    done = generate(denoiser, process, sampler, empty(process, NUM_SAMPLES), num_steps, 3)
    p = chi_square_p(counts_of(done.tokens, process.vocab_size), orders[0].law * NUM_SAMPLES)
    yield at_least(
        "samples have the enumerated law",
        p,
        FALSE_ALARM,
        f"the positions being what they are, samples in {num_steps} steps do not have the product of the predictions"
        f" (chi-square p = {p:.2g})",
    )


@law(unless=only(Confidence, P2))
def law_counts(sampler: Sampler[Any], process: ForwardProcess) -> Iterator[Finding]:
    """After step k of T a row with n free positions has n k / T decided ones, rounded as the sampler says."""
    length, rows = 7, torch.arange(8)
    fixed = torch.arange(length) < rows[:, None]
    canvas = Canvas(torch.zeros(len(rows), length, dtype=torch.int64), fixed)
    free = (~fixed).sum(-1)
    denoiser = FixedLogits(_some_logits(len(rows), length, process))
    up = not isinstance(sampler, P2)  # confidence leaves floor(n (T - k) / T) masked, P2 keeps floor(n k / T)
    for num_steps in (1, 3, 5, 7, 12):
        wrong, seen = 0, torch.zeros_like(free)

        def on_step(event: Event, num_steps: int = num_steps, seen: Tensor = seen) -> None:
            nonlocal wrong
            n, k = free[event.rows], event.index + 1
            kept = n - n * (num_steps - k) // num_steps if up else n * k // num_steps
            decided = (~process.may_change(event.after) & ~fixed[event.rows]).sum(-1)
            wrong += int((decided != kept).sum())
            seen[event.rows] += 1

        generate(denoiser, process, sampler, canvas, num_steps, 0, on_step)
        rule = "n - floor(n (T - k) / T)" if up else "floor(n k / T)"
        yield at_most(
            "as many are decided as planned", wrong, 0.0, f"{wrong} rows have not {rule} decided after step k"
        )
        early = int((seen < num_steps)[free >= num_steps].sum())
        yield at_most("no step is left out", early, 0.0, f"{early} rows stopped before step T = {num_steps}")


@law(unless=only(EntropyBound))
def law_entropy_bound(sampler: EntropyBound, process: ForwardProcess) -> Iterator[Finding]:
    """From every state the first k positions are decided for the largest k whose excess is at most gamma."""
    source, states = toy_source(process, 4), all_sequences(4, process.vocab_size)
    states = states[process.may_change(states).any(-1)]
    denoiser, noise = exact_denoiser(sampler, process, source), _same_row(len(states), 0)
    # Not t = 1, at which texts with decided tokens cannot occur and have no exact prediction.
    t, nothing = torch.full((len(states),), 0.5, dtype=torch.float64), torch.zeros_like(states, dtype=torch.bool)
    step = Step(0, 4, t, t / 2, nothing, nothing, noise)
    reading = read(denoiser, states, process.may_change(states), step)
    for gamma in (0.0, 0.3, 0.9, 2.0):
        bound = sampler.with_settings(gamma=gamma)
        chosen, ranked = bound.choose(reading, step, None), bound.rank(reading, step)
        values = torch.zeros(states.shape, dtype=torch.float64)
        values[reading.where] = entropy(reading.logits.double().log_softmax(-1))
        wrong = 0
        for row in range(len(states)):
            order = ranked.rank[row].argsort()[: int(reading.where[row].sum())]
            h = values[row, order].tolist()
            # float32 entropies may fall on either side of a bound that they touch
            most = {max(k for k in range(1, len(h) + 1) if k == 1 or sum(h[:k]) - max(h[:k]) <= gamma + e)
                    for e in (-1e-6, 1e-6)}  # fmt: skip
            first = [int(place) for place in order[: int(chosen[row].sum())]]
            wrong += len(first) not in most or not bool(chosen[row, first].all())
        yield at_most(
            "k is the largest with sum H - max H <= gamma",
            wrong,
            0.0,
            f"from {wrong} of {len(states)} states other positions are decided than the first k for gamma = {gamma}",
        )


@law(unless=only(Ordered))
def law_ties(sampler: Ordered[Any], process: ForwardProcess) -> Iterator[Finding]:
    """Where all predictions are equal, as they often are in bf16, each position is as likely to be decided first."""
    num, length = 4_000, 5
    canvas = empty(process, num, length)
    logits = torch.zeros(num, length, process.vocab_size)
    if process.mask_id is not None:
        logits[..., process.mask_id] = float("-inf")
    noise, t = row_noise(torch.arange(num), "ties"), torch.ones(num, dtype=torch.float64)
    step = Step(0, sampler.num_steps(canvas, length), t, t / 2, canvas.fixed, canvas.fixed, noise)
    reading = read(FixedLogits(logits), canvas.tokens, ~canvas.fixed, step)
    first = sampler.rank(reading, step).rank.argmin(-1)
    p = chi_square_p(torch.bincount(first, minlength=length), torch.full((length,), num / length))
    yield at_least(
        "equal scores are decided in an order of the seed",
        p,
        FALSE_ALARM,
        f"of equally good positions 0 to {length - 1} the first is decided"
        f" {torch.bincount(first, minlength=length).tolist()} times (chi-square p = {p:.2g}): ties have a direction",
    )


@law(unless=only(Ordered))
def law_sharpening_leaves_the_order(sampler: Ordered[Any], process: ForwardProcess) -> Iterator[Finding]:
    """Temperature and top-p change which token is drawn, not which positions are decided."""
    source, states = toy_source(process), all_sequences(LENGTH, process.vocab_size)
    denoiser, nothing = exact_denoiser(sampler, process, source), torch.zeros_like(states, dtype=torch.bool)
    canvas = empty(process, len(states))
    t = torch.ones(len(states), dtype=torch.float64)
    step = Step(0, sampler.num_steps(canvas, 2), t, t / 2, nothing, nothing, _same_row(len(states), 0))
    plain = sampler.with_settings(score="prob", temperature=1.0)
    chosen = [
        one.step(denoiser, process, states, step, one.init(canvas)).tokens != states
        for one in (plain, plain.with_settings(temperature=0.2), plain.with_settings(temperature=9.0, top_p=0.5))
    ]
    yield holds(
        "sharpening does not move the order",
        all(torch.equal(one, chosen[0]) for one in chosen),
        "at another temperature other positions are decided: scores are of the network's own distribution",
    )


def _some_logits(num: int, length: int, process: ForwardProcess) -> Tensor:
    logits = torch.randn(num, length, process.vocab_size, generator=torch.Generator().manual_seed(0))
    if process.mask_id is not None:
        logits[..., process.mask_id] = float("-inf")
    return logits


LAWS = [
    law_exact_order,
    law_likelihood,
    law_draws_follow_the_order,
    law_counts,
    law_entropy_bound,
    law_ties,
    law_sharpening_leaves_the_order,
]
"""Of a sampler and a process."""
