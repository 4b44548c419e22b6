"""Variance of the masked objective's loss and gradient: how its times and masks are drawn, against independent draws.

    python -m benchmarks.variance [--draws N] [--train-steps N] [--out DIR]

A tiny network is trained a little on a Markov chain. Then its loss and gradient on one and the same global batch are
drawn again and again, in each way: what varies is times and masks alone. A draw costs one forward and backward pass
over the batch, or one for each noisy copy that the corruption makes of a sequence. Ways are compared by variance times
passes: as the mean of n draws has an n-th of the variance, this is the variance at equal compute. The means must agree.

`learned` (and `learned_by_variance`, its option) is fitted on `NUM_UPDATES` other batches before it is measured, and
fixed from then on. Under the linear schedule `importance` is `stratified`.
`clipped` is not here, because its mean is another one.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import write_result
from benchmarks.train_step import describe_machine
from dlmkit.backbones.dit import DiT
from dlmkit.corruption.base import Corruption
from dlmkit.corruption.complementary import Complementary
from dlmkit.corruption.fixed_count import FixedCount
from dlmkit.corruption.independent import Independent
from dlmkit.objectives.masked import MaskedElbo
from dlmkit.processes.absorbing import Absorbing
from dlmkit.randomness import generator_for
from dlmkit.schedules.linear import Linear
from dlmkit.step import losses
from dlmkit.t_samplers.base import TimeSampler
from dlmkit.t_samplers.iid import IID
from dlmkit.t_samplers.importance import Importance
from dlmkit.t_samplers.learned import Learned
from dlmkit.t_samplers.offset_grid import OffsetGrid
from dlmkit.t_samplers.stratified import Stratified
from dlmkit.types import Batch, StepOutput

VOCAB, MASK, LENGTH, BATCH, EPS = 33, 32, 64, 16, 1e-3
GROUPS = 8
"""Independent parts of the draws, whose spread gives the standard errors."""
NUM_UPDATES = 300
"""Batches of other sequences that a time sampler is fitted on before it is measured."""

T_SAMPLERS: dict[str, Callable[[], TimeSampler]] = {
    "iid": lambda: IID(EPS),
    "stratified": lambda: Stratified(EPS),
    "offset_grid": lambda: OffsetGrid(EPS),
    "importance": lambda: Importance(Linear(), EPS),
    "learned": lambda: learned(by_variance=False),
    "learned_by_variance": lambda: learned(by_variance=True),
}
CORRUPTIONS: dict[str, Corruption] = {
    "independent": Independent(),
    "complementary": Complementary(min_share=2 * EPS),
    "fixed_count": FixedCount(),
}
PLAIN = ("iid", "independent")
PROCESS = Absorbing(Linear(), VOCAB, MASK)


def learned(by_variance: bool) -> Learned:
    """Return the learned density, not yet fitted."""
    return Learned(EPS, num_bins=32, uniform_share=0.1, decay=0.99, warmup_draws=10, by_variance=by_variance)


def sequences(num: int, seed: int) -> Tensor:
    """Return sequences of a Markov chain over the tokens other than the mask, int64 [num, L]."""
    chain = (2.0 * torch.randn(MASK, MASK, generator=generator_for("cpu", "chain"))).softmax(-1)
    generator = generator_for("cpu", "texts", seed)
    tokens = [torch.randint(MASK, (num,), generator=generator)]
    for _ in range(LENGTH - 1):
        tokens.append(torch.multinomial(chain[tokens[-1]], 1, generator=generator)[:, 0])
    return torch.stack(tokens, dim=1)


def drawn(
    backbone: DiT, x_0: Tensor, t_sampler: TimeSampler, corruption: Corruption, key: int | str
) -> tuple[Tensor, StepOutput]:
    """Return one draw of the losses [G, L], nats, and the step's output for parts that learn from it."""
    draw = t_sampler.sample(len(x_0), generator_for("cpu", "t", key))
    batch = Batch(x_0, torch.ones_like(x_0, dtype=torch.bool))
    noised = corruption.draw(PROCESS, batch, draw, range(len(x_0)), "noise", key)
    loss = losses(MaskedElbo(), PROCESS, backbone, noised).loss.view(-1, *x_0.shape).sum(0)  # over the copies
    return loss, StepOutput(draw, loss.detach(), noised, batch.scored)


def trained(num_steps: int) -> DiT:
    """Return a network after `num_steps` batches, drawn the plain way."""
    torch.manual_seed(0)
    backbone = DiT(VOCAB, MASK, LENGTH, 64, 2, 2, 32, time_conditioned=False)
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=2e-3)
    for step in range(num_steps):
        optimizer.zero_grad()
        loss, _ = drawn(backbone, sequences(BATCH, step), T_SAMPLERS[PLAIN[0]](), CORRUPTIONS[PLAIN[1]], step)
        loss.mean().backward()
        optimizer.step()
    return backbone


def fitted(backbone: DiT, way: tuple[str, str]) -> TimeSampler:
    """Return the time sampler of that way, fitted on batches that are neither trained on nor measured."""
    t_sampler = T_SAMPLERS[way[0]]()
    for update in range(NUM_UPDATES if isinstance(t_sampler, Learned) else 0):
        with torch.no_grad():
            x_0 = sequences(BATCH, 1_000_000 + update)
            _, output = drawn(backbone, x_0, t_sampler, CORRUPTIONS[way[1]], f"lesson {update}")
        t_sampler.update(t_sampler.collect(output))
    return t_sampler


def draws(backbone: DiT, x_0: Tensor, way: tuple[str, str], num: int) -> Iterator[tuple[float, Tensor]]:
    """Yield (loss, gradient as one vector) of `num` draws; keys are not those of the training."""
    parameters, t_sampler = list(backbone.parameters()), fitted(backbone, way)
    for key in range(num):
        loss = drawn(backbone, x_0, t_sampler, CORRUPTIONS[way[1]], -1 - key)[0].mean()
        gradient = torch.autograd.grad(loss, parameters)
        yield float(loss.detach()), torch.cat([one.flatten() for one in gradient]).double()


def measure(backbone: DiT, x_0: Tensor, way: tuple[str, str], num: int) -> dict[str, Any]:
    """Return the cost, the mean of the loss, and both variances; a gradient's is the trace of its covariance."""
    size = num // GROUPS
    loss_groups, gradient_groups, means = [], [], []
    total: list[tuple[float, Tensor]] = []
    for loss, gradient in draws(backbone, x_0, way, size * GROUPS):
        total.append((loss, gradient))
        if len(total) == size:
            values = torch.tensor([one for one, _ in total], dtype=torch.float64)
            gradients = torch.stack([one for _, one in total])
            loss_groups.append(float(values.var()))
            gradient_groups.append(float(gradients.var(dim=0).sum()))
            means.append(float(values.mean()))
            total = []
    return {
        "passes": CORRUPTIONS[way[1]].num_copies,
        "mean_loss": sum(means) / GROUPS,
        "mean_loss_stderr": _stderr(means),
        "loss_variance": sum(loss_groups) / GROUPS,
        "loss_variance_stderr": _stderr(loss_groups),
        "gradient_variance": sum(gradient_groups) / GROUPS,
        "gradient_variance_stderr": _stderr(gradient_groups),
    }


def check_means(ways: dict[str, dict[str, Any]]) -> None:
    """Raise RuntimeError when an estimator's mean is not that of independent draws, by 5 standard errors."""
    plain = ways[" ".join(PLAIN)]
    for name, way in ways.items():
        error = (way["mean_loss_stderr"] ** 2 + plain["mean_loss_stderr"] ** 2) ** 0.5
        # Each leaves out t < eps, where a fixed count is one mask; a share of about eps of the loss.
        if abs(way["mean_loss"] - plain["mean_loss"]) > 5 * error + 2 * EPS * plain["mean_loss"]:
            raise RuntimeError(f"{name} has a mean loss of {way['mean_loss']}, independent draws {plain['mean_loss']}")


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    machine, ways = result["machine"], result["ways"]
    plain = ways[" ".join(PLAIN)]
    changes = " with uncommitted changes" if machine["git_changes"] else ""
    lines = [
        f"# Variance of the masked objective's draws, {result['date']}",
        "",
        f"{machine['kind']}; torch {machine['torch']}; commit {machine['git_commit']}{changes}. {result['draws']} draws"
        f" of {BATCH} sequences of {LENGTH} tokens, after {result['train_steps']} training steps. A draw costs"
        " the passes given over each sequence; x is variance times passes, that is the variance at equal compute, over"
        " that of independent times and masks, plus or minus one standard error.",
        "",
        "| t_sampler | corruption | passes | mean loss | variance of the loss | x | variance of the gradient | x |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, way in ways.items():
        cells = [*name.split(), str(way["passes"]), f"{way['mean_loss']:.4f} ± {way['mean_loss_stderr']:.4f}"]
        for kind in ("loss_variance", "gradient_variance"):
            cells += [f"{way[kind]:.3g}", _ratio(way, plain, kind)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=512, help="draws of each way")
    parser.add_argument("--train-steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    backbone, x_0 = trained(options.train_steps), sequences(BATCH, -1)
    ways = {
        f"{t_sampler} {corruption}": measure(backbone, x_0, (t_sampler, corruption), options.draws)
        for corruption in CORRUPTIONS
        for t_sampler in T_SAMPLERS
    }
    check_means(ways)
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": {**describe_machine("cpu"), "threads": torch.get_num_threads()},
        "draws": options.draws,
        "train_steps": options.train_steps,
        "ways": ways,
    }
    write_result(result, "variance", table(result), options.out)
    print(table(result))


def _stderr(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).std()) / len(values) ** 0.5


def _ratio(way: dict[str, Any], plain: dict[str, Any], kind: str) -> str:
    ratio = way[kind] * way["passes"] / (plain[kind] * plain["passes"])
    relative = sum((one[f"{kind}_stderr"] / one[kind]) ** 2 for one in (way, plain)) ** 0.5
    return f"{ratio:.2f} ± {ratio * relative:.2f}"


if __name__ == "__main__":
    main()
