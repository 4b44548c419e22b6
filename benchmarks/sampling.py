"""Generation: seconds per text of the kit's samplers and caches, beside the samplers as they are published.

    python -m benchmarks.sampling [--shape NAME ...] [--precision float32|bf16] [--device auto|cpu|cuda] [--out DIR]

One network for each kind: trained in blocks of 16 (clean blocks before the current one are its context), or
bidirectional. The published samplers replace one mask in each step (T = L) and compute logits, probabilities and draws
at every position of the text in each. What is timed has the same law as what it is compared with where it is marked
exact. Weights are random, so that nothing is said of quality here: see experiments/decoding. Where a step costs the
same wherever it comes, some steps are timed and multiplied; ways take turns. On a CPU the seconds are processor time
of one thread, which other jobs disturb less than the clock on the wall.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import add_device, build_network, clock, device_of, gpt2_config, write_result
from benchmarks.train_step import describe_machine
from dlmkit.backbones.hf import HFBackbone
from dlmkit.generation import Event, generate
from dlmkit.prefix import RereadsPrefix
from dlmkit.processes.absorbing import Absorbing
from dlmkit.processes.base import ForwardProcess
from dlmkit.processes.none import NoNoise
from dlmkit.samplers.autoregressive import Autoregressive
from dlmkit.samplers.base import Sampler
from dlmkit.samplers.blockwise import Blockwise
from dlmkit.samplers.confidence import Confidence
from dlmkit.samplers.first_hitting import FirstHitting
from dlmkit.samplers.semi_autoregressive import SemiAutoregressive
from dlmkit.schedules.linear import Linear
from dlmkit.types import Canvas, Context, Denoiser, NetworkInput, Prediction

CPU_THREADS = 1
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}
"""Of the weights."""
TIMED_STEPS = 6
"""Steps of a way whose steps cost the same."""


@dataclass(frozen=True)
class Shape:
    """A GPT-2 from scratch, and the text that it generates; the vocabulary is GPT-2's and a mask token."""

    layers: int
    hidden: int
    heads: int
    length: int = 256
    block_size: int = 16
    vocab_size: int = 50_258

    @property
    def mask_id(self) -> int:
        """The last id."""
        return self.vocab_size - 1


SHAPES = {
    "small_vocab50k": Shape(layers=4, hidden=256, heads=4),
    "gpt2_127m": Shape(layers=12, hidden=768, heads=12),
}

Timed = Callable[[], float]
"""Runs a way once and returns the seconds of one text."""


@dataclass(frozen=True)
class Way:
    """A way to generate.

    Attributes:
        kind: of the network: "block", "bidirectional" or "autoregressive".
        exact: whether its texts have the law of one decision a step without any cache.
        passes: of the network for one text.
        run: times it.
    """

    kind: str
    exact: bool
    passes: int
    run: Timed


class NoCache(RereadsPrefix):
    """A network that reads its prefix again in every pass."""

    def __init__(self, network: HFBackbone) -> None:
        self.network = network

    def __call__(self, inputs: NetworkInput) -> Prediction:
        """Return the network's prediction."""
        return self.network(inputs)


class Enough(Exception):
    """The steps that are timed are over."""


def published_step(network: HFBackbone, x_t: Tensor, masked: Tensor, context: Context | None) -> Tensor:
    """Replace one mask in each row: full logits, full probabilities and a draw at every position, as published.

    Source: the sampling loops that arXiv 2406.07524 and 2503.09573 describe, without their caches.
    """
    t = torch.full((len(x_t),), 0.5, dtype=torch.float64, device=x_t.device)
    logits = network(NetworkInput(x_t, t, context=context)).logits(torch.ones_like(masked))
    probs = logits.softmax(-1)
    noise = 1e-10 - (torch.rand_like(probs) + 1e-10).log()
    drawn = (probs / noise).argmax(-1).reshape(x_t.shape)
    chosen = torch.rand(x_t.shape, device=x_t.device).masked_fill(~masked, -1.0).argmax(-1, keepdim=True)
    return x_t.scatter(1, chosen, drawn.gather(1, chosen))


def time_published(network: HFBackbone, shape: Shape, in_blocks: bool, device: torch.device) -> Timed:
    """Return how the published sampler is timed: steps evenly over the text, times L over their number."""

    def run() -> float:
        seconds = 0.0
        for index in range(TIMED_STEPS):
            decided = int((index + 0.5) / TIMED_STEPS * shape.length)
            end = (decided // shape.block_size + 1) * shape.block_size if in_blocks else shape.length
            x_t = torch.zeros(1, end, dtype=torch.int64, device=device)
            x_t[:, decided:] = shape.mask_id
            context = Context(x_t, shape.block_size, last=True) if in_blocks else None
            began = clock(device)
            with torch.no_grad():
                published_step(network, x_t, x_t == shape.mask_id, context)
            seconds += clock(device) - began
        return seconds * shape.length / TIMED_STEPS

    return run


def time_whole(
    denoiser: Denoiser, process: ForwardProcess, sampler: Sampler[Any], shape: Shape, device: torch.device, steps: int
) -> Timed:
    """Return how a whole text is timed."""

    def run() -> float:
        canvas = Canvas(
            *(torch.zeros(1, shape.length, dtype=kind, device=device) for kind in (torch.int64, torch.bool))
        )
        began = clock(device)
        generate(denoiser, process, sampler, canvas, steps)
        return clock(device) - began

    return run


def time_some(
    denoiser: Denoiser, process: ForwardProcess, sampler: Sampler[Any], shape: Shape, device: torch.device, steps: int
) -> Timed:
    """Return how some of `steps` steps are timed, from a text that is half decided, which has as many masks as most."""

    def run() -> float:
        fixed = (torch.arange(shape.length, device=device) < shape.length // 2)[None]
        stop = min(TIMED_STEPS, steps // 2)

        def on_step(event: Event) -> None:
            if event.index == stop - 1:
                raise Enough

        began = clock(device)
        with contextlib.suppress(Enough):
            generate(denoiser, process, sampler, Canvas(torch.zeros_like(fixed).long(), fixed), steps // 2, 0, on_step)
        return (clock(device) - began) * steps / stop

    return run


def ways(shape: Shape, precision: str, device: torch.device) -> dict[str, Way]:
    """Return what is timed, by name; the first of each kind is what the others are compared with."""
    torch.manual_seed(0)
    config = gpt2_config(shape.layers, shape.hidden, shape.heads, shape.length)
    network, causal = (
        build_network(config, shape.vocab_size, causal).eval().to(device, PRECISIONS[precision])
        for causal in (False, True)
    )
    noise, none = Absorbing(Linear(), shape.vocab_size, shape.mask_id), NoNoise(shape.vocab_size, shape.mask_id)
    one_by_one, length = Confidence(score="random"), shape.length

    def whole(sampler: Sampler[Any], steps: int, denoiser: Denoiser = network) -> Timed:
        return time_whole(denoiser, noise, sampler, shape, device, steps)

    def some(sampler: Sampler[Any], steps: int) -> Timed:
        return time_some(network, noise, sampler, shape, device, steps)

    blocks = Blockwise(shape.block_size, one_by_one)
    semi = SemiAutoregressive(32, one_by_one)
    uncached = time_whole(NoCache(causal), none, Autoregressive(), replace(shape, length=length // 4), device, length)
    return {
        "block: published": Way("block", True, length, time_published(network, shape, True, device)),
        "block: no cache": Way("block", True, length, whole(blocks, length, NoCache(network))),
        "block: cache": Way("block", True, length, whole(blocks, length)),
        "block: cache, 4 tokens a step": Way("block", False, length // 4, whole(blocks, length // 4)),
        "bidirectional: published": Way("bidirectional", True, length, time_published(network, shape, False, device)),
        "bidirectional: first hitting": Way("bidirectional", True, length, some(FirstHitting(), length)),
        "bidirectional: confidence": Way("bidirectional", True, length, some(Confidence(), length)),
        "bidirectional: confidence, 4 tokens a step": Way(
            "bidirectional", False, length // 4, some(Confidence(), length // 4)
        ),
        "bidirectional: prefix cache": Way(
            "bidirectional", False, length, whole(replace(semi, cache="prefix"), length)
        ),
        "bidirectional: dual cache": Way("bidirectional", False, length, whole(replace(semi, cache="both"), length)),
        "bidirectional: dual cache, 4 tokens a step": Way(
            "bidirectional", False, length // 4, whole(replace(semi, cache="both"), length // 4)
        ),
        "autoregressive, a quarter of the text: no cache": Way("autoregressive", True, length // 4, uncached),
        "autoregressive, a quarter of the text: cache": Way(
            "autoregressive",
            True,
            length // 4,
            time_whole(causal, none, Autoregressive(), replace(shape, length=length // 4), device, length),
        ),
    }


def measure(shape: Shape, precision: str, device: torch.device, rounds: int) -> dict[str, Any]:
    """Return per way: seconds of each turn, their median, and the median ratio to the first of its kind."""
    all_ways = ways(shape, precision, device)
    seconds: dict[str, list[float]] = {name: [] for name in all_ways}
    for turn in range(rounds + 1):  # the first one warms up
        for name, way in all_ways.items():
            taken = way.run()
            if turn:
                seconds[name].append(taken)
    result = {}
    for name, way in all_ways.items():
        first = next(other for other, one in all_ways.items() if one.kind == way.kind)
        faster = [base / own for base, own in zip(seconds[first], seconds[name], strict=True)]
        result[name] = {
            "exact": way.exact,
            "passes": way.passes,
            "seconds": seconds[name],
            "median_seconds": statistics.median(seconds[name]),
            "faster": statistics.median(faster),
        }
    return {"shape": asdict(shape), "ways": result}


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    machine = result["machine"]
    lines = [
        f"# Generation, {result['date']}",
        "",
        f"{machine['kind']}, {machine['threads']} thread, torch {machine['torch']}, {result['precision']},"
        f" {result['rounds']} turns; seconds of one text, medians.",
        "",
    ]
    for name, shape in result["shapes"].items():
        lines += [
            f"## {name}: {shape['shape']['length']} tokens",
            "",
            "| way | exact | passes | seconds | faster than the first of its kind |",
            "|---|---|---:|---:|---:|",
        ]
        for way, found in shape["ways"].items():
            exact = "yes" if found["exact"] else "no"
            lines.append(
                f"| {way} | {exact} | {found['passes']} | {found['median_seconds']:.2f} | {found['faster']:.2f}x |"
            )
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    add_device(parser)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    device = torch.device(device_of(options.device))
    if device.type == "cpu":
        torch.set_num_threads(CPU_THREADS)
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": {**describe_machine(device.type), "threads": torch.get_num_threads()},
        "precision": options.precision,
        "rounds": options.rounds,
        "shapes": {name: measure(SHAPES[name], options.precision, device, options.rounds) for name in options.shape},
    }
    write_result(result, f"sampling-{options.precision}", table(result), options.out)
    print(table(result))


if __name__ == "__main__":
    main()
