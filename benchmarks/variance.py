"""Variance of the masked objective's loss and gradient: how its times and masks are drawn, against independent draws.

    python -m benchmarks.variance [--draws N] [--train-steps N] [--out DIR]

A tiny network is trained a little on a Markov chain. Then its loss and gradient on one and the same global batch are
drawn again and again, in each way: what varies is times and masks alone. A draw costs one forward and backward pass
over the batch, or one for each noisy copy that the process makes of a sequence. Ways are compared by variance times
passes: as the mean of n draws has an n-th of the variance, this is the variance at equal compute. The means must agree.

`learned` (and `learned_centred`, its option) has observed `LESSONS` other batches before it is measured, and nothing
while it is: its density is fixed. Under the linear schedule `importance` is `stratified`.
`clipped` is not here, because its mean is another one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from dlmkit.noising import training_copies
from dlmkit.processes.absorbing_complementary import AbsorbingComplementary
from dlmkit.processes.absorbing_fixed_count import AbsorbingFixedCount
from torch import Tensor

from benchmarks.train_step import describe_machine
from dlmkit.backbones.dit import DiT
from dlmkit.objectives.masked import Masked
from dlmkit.processes.absorbing import Absorbing
from dlmkit.randomness import generator_for
from dlmkit.schedules.linear import Linear
from dlmkit.t_samplers.base import TimeSampler
from dlmkit.t_samplers.iid import IID
from dlmkit.t_samplers.importance import Importance
from dlmkit.t_samplers.learned import Learned
from dlmkit.t_samplers.offset_grid import OffsetGrid
from dlmkit.t_samplers.stratified import Stratified
from dlmkit.types import Batch, Noised

VOCAB, MASK, LENGTH, BATCH, EPS = 33, 32, 64, 16, 1e-3
GROUPS = 8
"""Independent parts of the draws, whose spread gives the standard errors."""
LESSONS = 300
"""Batches of other texts that a time sampler may learn from before it is measured."""

T_SAMPLERS: dict[str, Callable[[], TimeSampler]] = {
    "iid": lambda: IID(EPS),
    "stratified": lambda: Stratified(EPS),
    "offset_grid": lambda: OffsetGrid(EPS),
    "importance": lambda: Importance(Linear(), EPS),
    "learned": lambda: Learned(EPS, num_bins=32, floor=0.1, decay=0.99, warmup_draws=10, centred=False),
    "learned_centred": lambda: Learned(EPS, num_bins=32, floor=0.1, decay=0.99, warmup_draws=10, centred=True),
}
PROCESSES: dict[str, Absorbing] = {
    "absorbing": Absorbing(Linear(), VOCAB, MASK),
    "absorbing_complementary": AbsorbingComplementary(Linear(), VOCAB, MASK, min_share=2 * EPS),
    "absorbing_fixed_count": AbsorbingFixedCount(Linear(), VOCAB, MASK),
}
PLAIN = ("iid", "absorbing")


def texts(num: int, seed: int) -> Tensor:
    """Return sequences of a Markov chain over the tokens other than the mask, int64 [num, L]."""
    chain = (2.0 * torch.randn(MASK, MASK, generator=generator_for("cpu", "chain"))).softmax(-1)
    generator = generator_for("cpu", "texts", seed)
    tokens = [torch.randint(MASK, (num,), generator=generator)]
    for _ in range(LENGTH - 1):
        tokens.append(torch.multinomial(chain[tokens[-1]], 1, generator=generator)[:, 0])
    return torch.stack(tokens, dim=1)


def losses_of(
    backbone: DiT, x_0: Tensor, t_sampler: TimeSampler, process: Absorbing, key: int | str
) -> tuple[Tensor, Tensor]:
    """Return one draw of the losses [G, L], nats, and the statistics that the time sampler may learn from."""
    t, weight = t_sampler.sample(len(x_0), generator_for("cpu", "t", key))
    batch = Batch(x_0, torch.ones_like(x_0, dtype=torch.bool))
    rows, x_t, times, weights = training_copies(process, batch, t, weight, range(len(x_0)), "noise", key)
    loss = Masked()(backbone(x_t, times), Noised(rows.tokens, x_t, times, rows.scored, weights), process).loss
    loss = loss.view(-1, *x_0.shape).sum(0)  # over the copies of a sequence
    return loss, t_sampler.statistics(t, weight, loss, batch.scored)


def trained(num_steps: int) -> DiT:
    """Return a network that has seen `num_steps` batches, drawn the plain way."""
    torch.manual_seed(0)
    backbone = DiT(VOCAB, MASK, LENGTH, 64, 2, 2, 32, time_conditioned=False)
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=2e-3)
    for step in range(num_steps):
        optimizer.zero_grad()
        losses, _ = losses_of(backbone, texts(BATCH, step), T_SAMPLERS[PLAIN[0]](), PROCESSES[PLAIN[1]], step)
        (losses.sum() / losses.numel()).backward()
        optimizer.step()
    return backbone


def taught(backbone: DiT, way: tuple[str, str]) -> TimeSampler:
    """Return the time sampler of that way, which has observed batches that are neither trained on nor measured."""
    t_sampler = T_SAMPLERS[way[0]]()
    for lesson in range(LESSONS if isinstance(t_sampler, Learned) else 0):
        with torch.no_grad():
            x_0 = texts(BATCH, 1_000_000 + lesson)
            _, seen = losses_of(backbone, x_0, t_sampler, PROCESSES[way[1]], f"lesson {lesson}")
        t_sampler.observe(seen)
    return t_sampler


def draws(backbone: DiT, x_0: Tensor, way: tuple[str, str], num: int) -> Iterator[tuple[float, Tensor]]:
    """Yield (loss, gradient as one vector) of `num` draws; keys are not those of the training."""
    parameters, t_sampler = list(backbone.parameters()), taught(backbone, way)
    for key in range(num):
        losses, _ = losses_of(backbone, x_0, t_sampler, PROCESSES[way[1]], -1 - key)
        loss = losses.sum() / losses.numel()
        gradient = torch.autograd.grad(loss, parameters)
        yield float(loss.detach()), torch.cat([one.flatten() for one in gradient]).double()


def measure(backbone: DiT, x_0: Tensor, way: tuple[str, str], num: int) -> dict[str, Any]:
    """Return the cost, the mean of the loss, and both variances; a gradient's is the trace of its covariance."""
    size = num // GROUPS
    loss_groups, gradient_groups, losses = [], [], []
    total: list[tuple[float, Tensor]] = []
    for loss, gradient in draws(backbone, x_0, way, size * GROUPS):
        total.append((loss, gradient))
        if len(total) == size:
            values = torch.tensor([one for one, _ in total], dtype=torch.float64)
            gradients = torch.stack([one for _, one in total])
            loss_groups.append(float(values.var()))
            gradient_groups.append(float(gradients.var(dim=0).sum()))
            losses.append(float(values.mean()))
            total = []
    return {
        "passes": PROCESSES[way[1]].num_copies,
        "mean_loss": sum(losses) / GROUPS,
        "mean_loss_stderr": _stderr(losses),
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
        "| t_sampler | process | passes | mean loss | variance of the loss | x | variance of the gradient | x |",
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
    backbone, x_0 = trained(options.train_steps), texts(BATCH, -1)
    ways = {
        f"{t_sampler} {process}": measure(backbone, x_0, (t_sampler, process), options.draws)
        for process in PROCESSES
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
    kind = re.sub(r"[^a-z0-9]+", "-", result["machine"]["kind"].lower()).strip("-")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{result['date']}-{kind}-variance.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    path.with_suffix(".md").write_text(table(result))
    print(table(result))


def _stderr(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).std()) / len(values) ** 0.5


def _ratio(way: dict[str, Any], plain: dict[str, Any], kind: str) -> str:
    ratio = way[kind] * way["passes"] / (plain[kind] * plain["passes"])
    relative = sum((one[f"{kind}_stderr"] / one[kind]) ** 2 for one in (way, plain)) ** 0.5
    return f"{ratio:.2f} ± {ratio * relative:.2f}"


if __name__ == "__main__":
    main()
