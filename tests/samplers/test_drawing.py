"""Drawing tokens: temperature, top-k and top-p, and categorical draws that keep the tail."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlmkit.laws.findings import FALSE_ALARM
from dlmkit.laws.statistics import chi_square_p
from dlmkit.randomness import generator_for
from dlmkit.samplers.drawing import Filter, categorical, keep_top_k, keep_top_p
from laws.parts import MASK_ID

# Sharpening


def test_temperature_zero_is_argmax():
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    kept = Filter(0.0, None, 1.0)(logits)
    assert torch.equal(kept.isfinite().sum(-1), torch.ones(50, dtype=torch.int64))
    assert torch.equal(kept.argmax(-1), logits.argmax(-1))
    assert torch.equal(categorical(kept.softmax(-1), generator_for("cpu", 0)), logits.argmax(-1))


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
def test_values_outside_of_their_ranges_are_refused(arguments):
    with pytest.raises(ValueError, match=r"temperature|top_k|top_p"):
        Filter(*arguments)


def test_the_mask_stays_excluded_by_every_filter():
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
