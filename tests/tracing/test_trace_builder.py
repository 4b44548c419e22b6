"""What the builder records of a step, against changes worked out by hand, and that it leaves the sampler alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from traces import MASK, V, begun, decode, logits_of, stepped, trace

from dlmkit import Absorbing, Ancestral, Canvas, DiT, Linear, generate
from dlmkit.generation import Beginning, Event
from dlmkit.tracing.builder import TraceBuilder
from dlmkit.tracing.following import Following
from dlmkit.tracing.record import Token

THE, SEA, SKY = Token(0, "the"), Token(1, " sea"), Token(2, " sky")


def step(builder: TraceBuilder, before: Tensor, after: Tensor, where: Tensor | None, logits: Tensor | None) -> None:
    rows = torch.arange(before.shape[0])
    builder.step(stepped(rows, before, after, where, logits, torch.full((len(rows),), 0.5), torch.ones_like(rows)))


def test_changes_confidences_and_alternatives() -> None:
    sample = trace().samples[0]
    assert sample.given == [THE, None, None]
    assert sample.initial == [THE, None, None]
    first, second, third = sample.steps
    assert [(s.index, round(s.t, 3), s.passes, s.decided) for s in sample.steps] == [
        *((0, 1.0, 1, 1), (1, 0.667, 1, 1), (2, 0.333, 1, 2)),
    ]
    (change,) = first.changes
    assert (change.position, change.token, change.before, change.kind) == (1, SEA, None, "committed")
    assert change.confidence == pytest.approx(0.6, rel=1e-5)
    assert [(a.id, a.text) for a in change.alternatives] == [(1, " sea"), (2, " sky")]
    assert [a.probability for a in change.alternatives] == pytest.approx([0.6, 0.3], rel=1e-5)
    back, new = second.changes
    assert (back.position, back.token, back.before, back.kind) == (1, None, SEA, "remasked")
    assert back.confidence == pytest.approx(0.6, rel=1e-5)  # of the token that was taken back
    assert (new.position, new.kind, new.confidence) == (2, "committed", pytest.approx(0.2, rel=1e-5))
    assert [c.kind for c in third.changes] == ["committed", "replaced"]
    assert third.changes[1].before == Token(5, decode(5))
    assert sample.final == [THE, SKY, Token(4, "\n")]


def test_rows_and_positions_are_those_of_the_logits() -> None:
    """Two rows of three, with unequal numbers of positions read; a change outside them has no confidence."""
    builder = TraceBuilder(decode, MASK, 1)
    builder.start(begun(torch.full((3, 2), MASK), torch.zeros(3, 2, dtype=torch.bool)))
    rows, before, after = torch.tensor([2, 0]), torch.full((2, 2), MASK), torch.tensor([[1, 2], [MASK, 1]])
    where = torch.tensor([[False, True], [True, True]])
    logits = logits_of([0.5, 0.3, 0.2], [1.0], [0.3, 0.7])
    builder.step(stepped(rows, before, after, where, logits, torch.tensor([0.5, 0.25]), torch.tensor([2, 1])))
    one, two, three = builder.finish("m", "s", {}, 0, ["", "", ""], ["p", "q", "r"]).samples
    assert two.steps == []
    assert [(c.position, c.token, c.confidence) for c in three.steps[0].changes] == [
        *((0, SEA, None), (1, SKY, pytest.approx(0.2, rel=1e-5))),
    ]
    assert three.steps[0].changes[0].alternatives == []
    assert [(c.position, c.token, c.confidence) for c in one.steps[0].changes] == [
        (1, SEA, pytest.approx(0.7, rel=1e-5))
    ]
    assert (one.steps[0].t, one.steps[0].passes, three.steps[0].passes) == (0.25, 1, 2)
    assert (one.prompt, three.prompt) == ("p", "r")


def test_impossible_tokens_are_no_alternatives_and_a_short_vocabulary_is_enough() -> None:
    builder = TraceBuilder(decode, MASK, 50)
    builder.start(begun(torch.tensor([[MASK]]), torch.tensor([[False]])))
    step(builder, torch.tensor([[MASK]]), torch.tensor([[0]]), torch.tensor([[True]]), logits_of([0.25, 0.75]))
    (change,) = builder.finish("m", "s", {}, 0, [""]).samples[0].steps[0].changes
    assert [a.id for a in change.alternatives] == [1, 0]


def test_nothing_is_known_without_logits() -> None:
    builder = TraceBuilder(decode, MASK, 3)
    builder.start(begun(torch.tensor([[MASK, MASK]]), torch.tensor([[False, False]])))
    step(builder, torch.tensor([[MASK, MASK]]), torch.tensor([[0, MASK]]), None, None)
    (change,) = builder.finish("m", "s", {}, 0, [""]).samples[0].steps[0].changes
    assert (change.confidence, change.alternatives) == (None, [])


def test_noise_without_a_mask_is_replaced() -> None:
    builder = TraceBuilder(decode, None, 1)
    builder.start(begun(torch.tensor([[1, 2]]), torch.tensor([[False, False]])))
    step(builder, torch.tensor([[1, 2]]), torch.tensor([[0, 2]]), None, None)
    (sample,) = builder.finish("m", "s", {}, 0, [""]).samples
    assert sample.initial == [SEA, SKY]
    assert [(c.kind, c.before) for c in sample.steps[0].changes] == [("replaced", SEA)]
    assert sample.steps[0].decided == 2


def test_fillers_are_no_tokens_until_they_are_read() -> None:
    """An autoregressive sampler has no mask: the token that it draws may be the filler's own id."""
    builder = TraceBuilder(decode, None, 1)
    zeros, fixed = torch.zeros(1, 3, dtype=torch.int64), torch.tensor([[True, False, False]])
    builder.start(begun(zeros, fixed, blank=~fixed))
    where = torch.tensor([[False, True, False]])
    step(builder, zeros, zeros, where, logits_of([0.9, 0.1]))
    step(builder, zeros, torch.tensor([[0, 0, 1]]), where.roll(1), logits_of([0.9, 0.1]))
    (sample,) = builder.finish("m", "s", {}, 0, [""]).samples
    assert sample.initial == [THE, None, None]
    kinds = [[(c.position, c.kind, c.token, c.before) for c in s.changes] for s in sample.steps]
    assert kinds == [[(1, "committed", THE, None)], [(2, "committed", SEA, None)]]
    assert [s.decided for s in sample.steps] == [1, 2]


def test_batches_go_to_their_places() -> None:
    builder = TraceBuilder(decode, MASK, 1)
    builder.start(begun(torch.tensor([[0, 1], [1, 1]]), torch.ones(2, 2, dtype=torch.bool), places=[2, 0]))
    builder.start(begun(torch.tensor([[2]]), torch.ones(1, 1, dtype=torch.bool), places=[1]))
    samples = builder.finish("m", "s", {}, 0, ["a", "b", "c"]).samples
    assert [(s.text, [token and token.id for token in s.given]) for s in samples] == [
        *(("a", [1, 1]), ("b", [2]), ("c", [0, 1])),
    ]
    with pytest.raises(ValueError, match="3 samples, 1 texts"):
        builder.finish("m", "s", {}, 0, ["a"])
    with pytest.raises(ValueError, match="top_k -1"):
        TraceBuilder(decode, MASK, -1)


class Unwritten:
    """A view before the builder, which keeps what both are handed and compares it at the next step."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []

    def start(self, beginning: Beginning) -> None:
        self._keep(beginning)

    def step(self, event: Event) -> None:
        assert all(torch.equal(tensor, copy) for tensor, copy in self.seen)
        self._keep(event)

    def _keep(self, record: Beginning | Event) -> None:
        handed = [*vars(record).values()]
        if isinstance(record, Event) and record.reading is not None:
            handed += vars(record.reading).values()
        self.seen = [(tensor, tensor.clone()) for tensor in handed if isinstance(tensor, Tensor)]


def test_a_trace_changes_nothing_that_is_sampled() -> None:
    """The same tokens, and the tensors of a step as they were; the trace ends where the sampler did."""
    torch.manual_seed(0)
    network = DiT(V, MASK, max_length=8, hidden_size=16, num_layers=1, num_heads=2, cond_size=8).eval()
    process, sampler = Absorbing(Linear(), V, MASK), Ancestral(1.0, None, 1.0)
    canvas = Canvas(torch.zeros(2, 8, dtype=torch.int64), torch.tensor([[True] + [False] * 7] * 2))

    plain = generate(network, process, sampler, canvas, 4, 3).tokens
    builder = TraceBuilder(decode, MASK, 3)
    following = Following([Unwritten(), builder])
    done = generate(network, process, sampler, canvas, 4, 3, following.on_step, on_start=following.on_start)
    traced = done.tokens
    assert torch.equal(plain, traced)
    samples = builder.finish("m", "s", {}, 3, ["", ""]).samples
    assert [[token and token.id for token in sample.final] for sample in samples] == traced.tolist()
    assert [sample.steps[-1].decided for sample in samples] == [7, 7]
    confidences = [c.confidence for sample in samples for s in sample.steps for c in s.changes]
    assert all(p is not None and 0 < p < 1 for p in confidences)
