"""Drawing tokens: temperature, top-k and top-p, and categorical draws that keep the tail."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlmkit.laws.findings import FALSE_ALARM
from dlmkit.laws.statistics import chi_square_p
from dlmkit.randomness import row_noise
from dlmkit.samplers.drawing import Shaped, keep_min_p, keep_top_k, keep_top_p
from dlmkit.tensors import categorical
from laws.parts import MASK_ID


def uniform(num: int) -> Tensor:
    return row_noise(torch.arange(1), 0).uniform("test", num)[0]


# Sharpening


def test_temperature_zero_is_argmax():
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    kept = Shaped(0.0).sharpened(logits)
    assert torch.equal(kept.isfinite().sum(-1), torch.ones(50, dtype=torch.int64))
    assert torch.equal(kept.argmax(-1), logits.argmax(-1))
    assert torch.equal(categorical(kept.softmax(-1), uniform(50)), logits.argmax(-1))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(temperature):
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    probs = logits.softmax(-1) ** (1 / temperature)
    torch.testing.assert_close(Shaped(temperature).sharpened(logits).softmax(-1), probs / probs.sum(-1, keepdim=True))


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
    assert Shaped(2.0, 2, 0.6).sharpened(logits).isfinite().tolist() == [[True, False, False, False]]
    assert Shaped(2.0, None, 0.6).sharpened(logits).isfinite().tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(
    "arguments",
    [
        (-1.0, None, 1.0),
        (1.0, 0, 1.0),
        (1.0, None, 0.0),
        (1.0, None, 1.1),
        (1.0, None, 1.0, 2.0),
        (1.0, None, 1.0, 0.0, 0.5),
    ],
)
def test_values_outside_of_their_ranges_are_refused(arguments):
    with pytest.raises(ValueError, match=r"temperature|top_k|top_p|min_p|repetition_penalty"):
        Shaped(*arguments)


def test_the_mask_stays_excluded_by_every_filter():
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    logits[:, MASK_ID] = float("-inf")
    for shape in (Shaped(0.0), Shaped(0.7, 4), Shaped(1.3, None, 0.99), Shaped(1.0, 4), Shaped(min_p=1.0)):
        assert (categorical(shape.sharpened(logits).softmax(-1), uniform(50)) != MASK_ID).all()


def test_min_p_keeps_tokens_of_a_share_of_the_likeliest():
    logits = torch.tensor([[0.5, 0.24, 0.26]], dtype=torch.float64).log()
    assert keep_min_p(logits, 0.5).isfinite().tolist() == [[True, False, True]]
    assert Shaped(min_p=0.5).sharpened(logits).isfinite().tolist() == [[True, False, True]]


def test_repeated_tokens_are_penalised_in_their_own_row():
    """Positive logits are divided, negative ones multiplied; tokens that are not decided do not count."""
    x_t = torch.tensor([[2, 3, 1], [3, 1, 1]])
    where = x_t == 1
    logits = torch.tensor([1.0, -1.0, 4.0, -4.0]).expand(3, -1)
    got = Shaped(repetition_penalty=2.0).shaped(logits, x_t, where, ~where)
    assert got.tolist() == [[1.0, -1.0, 2.0, -8.0], [1.0, -1.0, 4.0, -8.0], [1.0, -1.0, 4.0, -8.0]]


# The draw


def test_categorical_follows_its_probabilities():
    weights = torch.tensor([3.0, 0.0, 1.0, 0.01, 5.0])
    num = 100_000
    counts = torch.bincount(categorical(weights, uniform(num)), minlength=5)
    assert chi_square_p(counts, weights.double() / weights.double().sum() * num) > FALSE_ALARM


def test_categorical_keeps_the_tail():
    """A thousand tokens of 1e-7 each beside one that takes the rest: 10 of 100,000 draws.

    The count is Poisson: zero with probability 5e-5, 30 or more with 1e-6.
    """
    tail, rows, blocks = 1_000, 10_000, 10
    probs = torch.full((1 + tail,), 1e-7)
    probs[0] = 1.0
    draws = uniform(rows * blocks).split(rows)
    drawn = sum(int((categorical(probs.expand(rows, -1), numbers) != 0).sum()) for numbers in draws)
    assert 0 < drawn < 30


def test_categorical_inverts_the_distribution_function():
    """Also at its ends: a token of probability 0 is never drawn, and one of 1e-12 has its own interval."""
    probs = torch.tensor([0.0, 1e-12, 0.5, 0.0, 0.5 - 1e-12, 0.0], dtype=torch.float64)
    numbers = torch.tensor([1e-300, 9e-13, 1.1e-12, 0.4999999999999, 0.5000000001, 1 - 2**-54], dtype=torch.float64)
    assert categorical(probs, numbers).tolist() == [1, 1, 2, 2, 4, 4]
    assert categorical(probs.expand(6, -1), numbers).tolist() == [1, 1, 2, 2, 4, 4]
    assert categorical(3.0 * probs.float(), numbers).tolist()[3:] == [2, 4, 4]
