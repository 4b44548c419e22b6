"""Training step of each objective: tokens per second and peak memory, beside the masked one.

    python -m benchmarks.objectives [--objective NAME ...] [--precision NAME ...] [--device auto|cpu|cuda] [--out DIR]

One GPT-2 shape for all, causal for the autoregressive objective; the noise of each objective's process, drawn for the
whole batch. Each objective runs in a process of its own, so that peak memory is its own, and the processes take turns.
On a CPU the seconds are processor time of one thread, which other jobs disturb less than the clock on the wall.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import add_device, clock, device_of, take_turns, write_result
from benchmarks.train_step import SHAPES, Shape, build_backbone, describe_machine, peak_memory
from dlmkit.corruption.independent import Independent
from dlmkit.objectives.autoregressive import Autoregressive
from dlmkit.objectives.base import Objective
from dlmkit.objectives.block import BlockElbo, num_blocks
from dlmkit.objectives.hybrid import HybridElbo
from dlmkit.objectives.masked import MaskedElbo
from dlmkit.objectives.score_entropy import ScoreEntropy
from dlmkit.objectives.uniform import UniformElbo
from dlmkit.processes.absorbing import Absorbing
from dlmkit.processes.base import ForwardProcess
from dlmkit.processes.hybrid import Hybrid
from dlmkit.processes.none import NoNoise
from dlmkit.processes.uniform import Uniform
from dlmkit.randomness import generator_for
from dlmkit.schedules.linear import Linear
from dlmkit.step import losses
from dlmkit.t_samplers.stratified import Stratified
from dlmkit.types import Batch

WARM_UP = 1
CPU_THREADS = 1
BASELINE = "masked"
PRECISIONS = ("float32", "bf16")


@dataclass(frozen=True)
class Way:
    """An objective with the noise that it is for.

    Attributes:
        objective: loss.
        process: (V, mask id) -> noise.
        causal: attend to the past alone.
    """

    objective: Objective[Any]
    process: Callable[[int, int], ForwardProcess]
    causal: bool = False


def _absorbing(vocab_size: int, mask_id: int) -> Absorbing:
    return Absorbing(Linear(), vocab_size, mask_id)


def _uniform(vocab_size: int, mask_id: int) -> Uniform:
    return Uniform(Linear(), vocab_size, mask_id)


def _hybrid(vocab_size: int, mask_id: int) -> Hybrid:
    return Hybrid(vocab_size, mask_id, p_uniform=0.1, gamma=1.0)


def _no_noise(vocab_size: int, mask_id: int) -> NoNoise:
    return NoNoise(vocab_size, mask_id)


WAYS = {
    "masked": Way(MaskedElbo(), _absorbing),
    "autoregressive": Way(Autoregressive(), _no_noise, causal=True),
    "uniform": Way(UniformElbo(), _uniform),
    "hybrid": Way(HybridElbo(), _hybrid),
    "score_entropy": Way(ScoreEntropy(), _absorbing),
    "score_entropy_uniform": Way(ScoreEntropy(), _uniform),
    "block_16": Way(BlockElbo(16, MaskedElbo()), _absorbing),
    "block_4": Way(BlockElbo(4, MaskedElbo()), _absorbing),
    "block_1": Way(BlockElbo(1, MaskedElbo()), _absorbing),
}

QUICKSTART = Shape(layers=4, hidden=128, heads=4, length=128, batch=16, vocab=1025)
"""The shape of experiments/quickstart, where block diffusion is compared."""
ALL_SHAPES = {**SHAPES, "quickstart": QUICKSTART}


def worker(pipe: Any, name: str, shape: Shape, precision: str, device_name: str) -> None:
    """Train one objective in its own process: each number received is how many steps to take and time."""
    device = torch.device(device_name)
    if device.type == "cpu":
        torch.set_num_threads(CPU_THREADS)
    way = WAYS[name]
    process = way.process(shape.vocab, shape.mask_id)
    backbone = build_backbone(shape, causal=way.causal).to(device)
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=3e-4, fused=True)
    blocks = num_blocks(shape.length, way.objective.block_size)
    scored = torch.ones(shape.batch, shape.length, dtype=torch.bool, device=device)
    scored[:, 0] = False  # no output predicts token 0
    index = 0
    while num_steps := pipe.recv():
        seconds, values = [], []
        for _ in range(num_steps):
            generator = generator_for("cpu", "text", index)
            x_0 = torch.randint(shape.mask_id, (shape.batch, shape.length), generator=generator).to(device)
            times = Stratified(eps=1e-3).sample(shape.batch * blocks, generator_for("cpu", "t", index))
            draw = times.by_block(blocks)
            noised = Independent().draw(process, Batch(x_0, scored), draw, range(shape.batch), "noise", index)
            begin = clock(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                loss = losses(way.objective, process, backbone, noised).total / scored.sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(clock(device) - begin)
            values.append(loss.item())
            index += 1
        pipe.send((seconds, values, peak_memory(device)))


def summarize(shape: Shape, runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what is reported of one shape and precision."""
    tokens = shape.batch * shape.length
    for run in runs.values():
        run["tokens_per_second"] = tokens / statistics.median(run["seconds"])
    base = runs[BASELINE]
    for run in runs.values():
        run["speed_ratio"] = run["tokens_per_second"] / base["tokens_per_second"]
        run["memory_ratio"] = run["peak_bytes"] / base["peak_bytes"]
    return {**asdict(shape), "objectives": runs}


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    machine = result["machine"]
    changes = " with uncommitted changes" if machine["git_changes"] else ""
    lines = [
        f"# Training step per objective, {result['date']}",
        "",
        f"{machine['kind']}, {machine['threads']} threads; torch {machine['torch']}, transformers"
        f" {machine['transformers']}; commit {machine['git_commit']}{changes}. Medians of {result['clock']};"
        f" ratios are to {BASELINE} at the same precision.",
        "",
        "| shape | precision | objective | tokens/s | ratio | step, ms | spread, ms | peak memory | ratio |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for shape, precisions in result["shapes"].items():
        for precision, summary in precisions.items():
            for name, run in summary["objectives"].items():
                low, middle, high = statistics.quantiles(run["seconds"], n=4)
                cells = [
                    shape,
                    precision,
                    name,
                    f"{run['tokens_per_second']:,.0f}",
                    f"{run['speed_ratio']:.2f}x",
                    f"{1000 * middle:,.0f}",
                    f"{1000 * low:,.0f} to {1000 * high:,.0f}",
                    f"{run['peak_bytes'] / 2**30:.2f} GiB",
                    f"{run['memory_ratio']:.2f}x",
                ]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--objective", nargs="+", choices=WAYS, default=list(WAYS), help=f"beside {BASELINE}")
    parser.add_argument("--shape", nargs="+", choices=ALL_SHAPES, help="default: by the kind of device")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    add_device(parser)
    parser.add_argument("--batch", type=int, help="sequences per step, instead of the shape's")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each objective")
    parser.add_argument("--steps", type=int, default=2, help="steps per turn")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    device = device_of(options.device)
    names = [BASELINE, *(name for name in options.objective if name != BASELINE)]
    machine = {**describe_machine(device), "threads": CPU_THREADS if device == "cpu" else torch.get_num_threads()}
    shapes: dict[str, Any] = {}
    for shape_name in options.shape or ["gpt2_127m_gpu" if device == "cuda" else "small_vocab50k", "quickstart"]:
        shape = replace(ALL_SHAPES[shape_name], batch=options.batch or ALL_SHAPES[shape_name].batch)
        shapes[shape_name] = {}
        for precision in options.precision:
            own = {name: (name, shape, precision, device) for name in names}
            runs = take_turns(worker, own, WARM_UP, options.rounds, options.steps)
            shapes[shape_name][precision] = summarize(shape, runs)
    kind = "processor time" if device == "cpu" else "wall time"
    result = {"date": datetime.date.today().isoformat(), "machine": machine, "clock": kind, "shapes": shapes}
    write_result(result, "objectives", table(result), options.out)
    print(table(result))


if __name__ == "__main__":
    main()
