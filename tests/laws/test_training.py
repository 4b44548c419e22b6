"""Training: a step is the gradient of sum(loss) / scored tokens of the global batch, however that is split."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlmkit.laws.objectives import no_integral
from dlmkit.laws.quadrature import nodes
from dlmkit.laws.source import Source, noised_everywhere
from dlmkit.parameterizations.score import Score
from dlmkit.processes.base import ForwardProcess
from dlmkit.randomness import generator_for
from dlmkit.step import losses
from dlmkit.t_samplers.base import TimeSampler
from dlmkit.types import Noised, TimeDraw
from laws import parts
from laws.toy_training import (
    ValidationData,
    assert_same,
    by_hand,
    families,
    module,
    tiny_gpt2,
    trained,
    trainer,
    weights,
)

FAMILIES = parts.params(families())
INTEGRALS = parts.params(
    (*family, t_sampler)
    for family in families()
    for t_sampler in parts.names("t_sampler")
    if no_integral(parts.objective(family[0]), parts.process(family[1])) is None
    # Where tokens are not noised independently only the mean over all of [0, 1] is right.
    and (parts.corruption(family[2]).independent or parts.t_sampler(t_sampler).support == (0.0, 1.0))
)
SPLITS = [pytest.param(8, 1, id="8x1"), pytest.param(2, 4, id="2x4"), pytest.param(1, 8, id="1x8")]


@pytest.mark.parametrize(("micro_batch_size", "accumulate"), SPLITS)
@pytest.mark.parametrize(("objective", "process", "corruption"), FAMILIES)
def test_a_step_is_the_gradient_by_hand(objective, process, corruption, micro_batch_size, accumulate):
    """Two steps on different sequences, so that counts left over from the first would show in the second."""
    family = (objective, process, corruption)
    before = weights(module(*family))
    mine = trained(module(*family), micro_batch_size, accumulate, num_steps=2)
    reference = by_hand(module(*family), num_steps=2)
    assert_same(mine, reference)
    assert max(float((one - other).abs().max()) for one, other in zip(before, reference, strict=True)) > 0.01


def learner() -> TimeSampler:
    """Past its warm-up after one step of G = 8 draws, two in each bin."""
    return parts.t_sampler("learned", num_bins=4, warmup_draws=2, uniform_share=0.1)


@pytest.mark.parametrize(("micro_batch_size", "accumulate"), SPLITS)
@pytest.mark.parametrize(("objective", "process"), [("masked", "absorbing"), ("discrete", "uniform")])
def test_times_are_learned_from_the_global_batch(objective, process, micro_batch_size, accumulate):
    """The second step's times follow the losses of the first, at the drawn times, however the step was split."""
    ways = [module(objective, process, t_sampler=learner()) for _ in range(2)]
    assert_same(trained(ways[0], micro_batch_size, accumulate, num_steps=2), by_hand(ways[1], num_steps=2))
    torch.testing.assert_close(ways[0].t_sampler.state_dict(), ways[1].t_sampler.state_dict(), rtol=1e-4, atol=0)
    assert float(ways[1].t_sampler.probabilities.max()) > 0.3
    plain = by_hand(module(objective, process), num_steps=2)
    with pytest.raises(AssertionError):
        assert_same(weights(ways[0]), plain)


@pytest.mark.parametrize(("objective", "process"), [("masked", "absorbing"), ("autoregressive", "none")])
def test_an_unpredicted_first_token_is_neither_noised_nor_counted(objective, process):
    assert_same(trained(module(objective, process, bos="none"), 2, 4), by_hand(module(objective, process, bos="none")))


def test_a_mean_of_means_would_be_wrong():
    """Each micro-batch's own mean, averaged, is another gradient: the law above can fail."""
    model = module("masked", "absorbing")
    model.on_before_optimizer_step = lambda optimizer: None  # type: ignore[method-assign]
    with pytest.raises(AssertionError):
        assert_same(trained(model, 1, 8), by_hand(module("masked", "absorbing")))


@pytest.mark.parametrize(("objective", "process", "corruption"), FAMILIES)
def test_validation_does_not_move_with_the_micro_batch(objective, process, corruption):
    model = module(objective, process, corruption)
    results = []
    for size in (10, 3, 1):
        trainer().validate(model, datamodule=ValidationData(size), verbose=False)
        results.append({name: float(value) for name, value in model.trainer.callback_metrics.items()})
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-5)
    assert results[0]["val/nll_stderr"] > 0


@pytest.mark.parametrize(("objective", "process", "corruption", "t_sampler"), INTEGRALS)
def test_mean_training_loss_is_the_bound(objective, process, corruption, t_sampler):
    """Noise, times, network and objective together: the mean over draws is the integral by enumeration.

    Within 5 standard errors. Both leave out t < 0.05, where rare jumps that cost 1 / t make the variance of uniform
    noise diverge, and what is outside of the time sampler's support.
    """
    size, mask_id = 4, 1
    schedule, num = "linear", 20_000
    eps = 0.05 if parts.corruption(corruption).independent else 0.0
    bound = parts.objective(objective)
    if bound.block_size is not None:
        bound.block_size = 3  # one block
    if isinstance(bound.parameterization, Score):
        # Total noise must be finite, or wrong scores under uniform noise cost 1 / alpha down to alpha = 0: infinitely.
        schedule, num = "log_linear", 160_000
    noise = parts.process(process, schedule, vocab_size=size, mask_id=mask_id)
    backbone = tiny_gpt2(causal=False, vocab_size=size, mask_id=mask_id).eval()
    x = torch.tensor([[3, 0, 2]])
    joint = torch.zeros(size, size, size, dtype=torch.float64)
    joint[tuple(x[0])] = 1.0

    limits = {"eps": eps} if parts.takes("t_sampler", t_sampler, "eps") else {}
    times = parts.t_sampler(t_sampler, schedule, **limits)

    with torch.no_grad():
        ends = torch.tensor([max(times.support.first, limits.get("eps", 0.0)), times.support.last], dtype=torch.float64)
        top, bottom = noise.alpha(ends).tolist()
        noised, share, _ = noised_everywhere(Source(joint), noise, nodes(noise, 48, top, bottom))
        exact = float((share * losses(bound, noise, backbone, noised).nll.double().sum(-1)).sum())

        drawn = noised_at(times.sample(num, generator_for("cpu", "t", objective)), x, noise, corruption)
        result = losses(bound, noise, backbone, drawn)
        draws = result.nll.double().sum(-1).view(-1, num).sum(0)  # over the copies of a sequence
    slack = 5 * float(draws.std()) / num**0.5
    assert slack < 0.1 * exact
    assert abs(float(draws.mean()) - exact) < slack
    torch.testing.assert_close(result.loss, result.nll)


def noised_at(draw: TimeDraw, x: Tensor, noise: ForwardProcess, name: str) -> Noised:
    """Copies of one sequence, noised at the drawn times as in training but all from one generator."""
    corruption, num = parts.corruption(name), len(draw.t)
    x_0 = x.expand(num, -1)
    scored = torch.ones_like(x_0, dtype=torch.bool)
    t, weight = corruption.times(noise, draw)
    x_t = corruption.corrupt(noise, x_0, t, scored, generator_for("cpu", "mean")).flatten(0, 1)
    rows, weight = (len(t), 1), weight.flatten() / len(t)
    rate = corruption.noise_rate(noise, t.flatten(), scored.repeat(rows))
    return Noised(x_0.repeat(rows), x_t, t.flatten(), scored.repeat(rows), weight, noise_rate=rate)
