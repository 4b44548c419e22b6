"""Compares samplers, numbers of steps and caches on the models of `experiment=decoding`.

    dlmkit train experiment=decoding -m
    python experiments/decoding/measure.py runs/decoding [--texts N] [--out DIR]

For each sampler: the exact likelihood of held-out texts under it (DUEL; nats per token, every text under all samplers,
so that differences have standard errors of their own), statistics of texts that it generates, and what both cost:
tokens per pass of the network and seconds of processor time (one thread).
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlmkit import LoadedModel, load
from dlmkit.build import build_data
from dlmkit.evaluation.duel import duel
from dlmkit.evaluation.text_quality import (
    Estimate,
    distinct,
    histogram_distance,
    jackknife,
    rank_histogram,
    ranks,
    unigram_entropy,
)
from dlmkit.generation import generate
from dlmkit.report.load import Point
from dlmkit.report.plots import Frame, Spot, scatter_chart
from dlmkit.samplers.autoregressive import Autoregressive
from dlmkit.samplers.base import Sampler
from dlmkit.samplers.blockwise import Blockwise
from dlmkit.samplers.confidence import Confidence
from dlmkit.samplers.entropy_bound import EntropyBound
from dlmkit.samplers.factor import Factor
from dlmkit.samplers.semi_autoregressive import SemiAutoregressive
from dlmkit.samplers.threshold import Threshold
from dlmkit.types import Canvas, NetworkInput

STEPS = (128, 64, 32, 16, 8)
SCORES = ("random", "prob", "margin", "entropy")
BLOCK_LENGTH = 32
CACHED_STEPS = (128, 32)


@dataclass(frozen=True)
class Setting:
    """A sampler to measure.

    Attributes:
        name: in tables.
        model: "adapted" or "adapted_block".
        sampler: of the model.
        steps: asked for.
    """

    name: str
    model: str
    sampler: Sampler[Any]
    steps: int


def settings(block_size: int) -> Iterator[Setting]:
    """Yield what is measured; the first is the plain sampler, one mask at a time in random order."""
    adaptive: list[tuple[str, Sampler[Any]]] = [
        *((f"threshold {value}", Threshold(threshold=value)) for value in (0.9, 0.5, 0.3)),
        *((f"factor {value}", Factor(factor=value)) for value in (1.0, 2.0)),
        *((f"entropy_bound {value}", EntropyBound(gamma=value)) for value in (0.5, 2.0, 5.0)),
    ]
    for steps in STEPS:
        for score in SCORES:
            within = Confidence(score=score)
            yield Setting(f"{score}, {steps} steps", "adapted", within, steps)
            yield Setting(f"{score}, {steps} steps", "adapted_block", Blockwise(block_size, within), steps)
        for cache in ("none", "prefix", "both") if steps in CACHED_STEPS else ():
            semi = SemiAutoregressive(BLOCK_LENGTH, Confidence(score="margin"), cache)
            yield Setting(f"semi-AR margin, cache {cache}, {steps} steps", "adapted", semi, steps)
    for name, sampler in adaptive:
        yield Setting(name, "adapted", sampler, 1)
        yield Setting(name, "adapted_block", Blockwise(block_size, sampler), 1)


def held_out(model: LoadedModel, num: int) -> Tensor:
    """Return validation texts, int64 [num, L]."""
    sequences = build_data(model.config.copy()).corpus.val_sequences
    picked = torch.linspace(0, len(sequences) - 1, num).long().tolist()
    return torch.from_numpy(sequences.tokens(picked)).long()


def measured(setting: Setting, model: LoadedModel, judge: LoadedModel, texts: Tensor, real: Tensor) -> dict[str, Any]:
    """Return the likelihood, the statistics of generated texts and the cost of one sampler.

    Args:
        setting: the sampler.
        model: that it samples from.
        judge: the autoregressive model.
        texts: held-out, int64 [B, L].
        real: histogram of their ranks under the judge.
    """
    scored = duel(model.backbone, model.process, setting.sampler, texts, setting.steps)
    made = generated(setting.sampler, setting.steps, model, judge, texts, real)
    return {"model": setting.model, "sampler": setting.name, "nll": (scored.nll / texts.shape[1]).tolist(), **made}


def generated(
    sampler: Sampler[Any], steps: int, model: LoadedModel, judge: LoadedModel, texts: Tensor, real: Tensor
) -> dict[str, Any]:
    """Return cost and statistics of as many generated texts as held-out ones; arguments as in `measured`."""
    canvas = Canvas(torch.zeros_like(texts), torch.zeros_like(texts, dtype=torch.bool))
    began = time.process_time()
    done = generate(model.backbone, model.process, sampler, canvas, steps)
    seconds = time.process_time() - began
    ranked, size = ranks(judge.backbone, done.tokens), judge.process.vocab_size
    return {
        "passes": float(done.passes.double().mean()),
        "tokens_per_pass": texts.numel() / float(done.passes.sum()),
        "seconds_per_text": seconds / len(texts),
        **statistics(done.tokens),
        "rank_distance": as_pair(
            jackknife(lambda places: histogram_distance(rank_histogram(ranked[places], size), real), len(texts))
        ),
    }


def statistics(tokens: Tensor) -> dict[str, list[float]]:
    """Return [value, standard error] of the statistics that need no judge."""
    return {
        "entropy": as_pair(jackknife(lambda places: float(unigram_entropy(tokens[places]).mean()), len(tokens))),
        "distinct_2": as_pair(jackknife(lambda places: distinct(tokens[places], 2), len(tokens))),
    }


def as_pair(estimate: Estimate) -> list[float]:
    """Return [value, standard error]."""
    return [estimate.value, estimate.stderr]


def ar_baseline(judge: LoadedModel, texts: Tensor, real: Tensor) -> dict[str, Any]:
    """Return the same of the autoregressive model, one token a pass."""
    t = torch.zeros(len(texts), dtype=torch.float64)
    where = torch.ones_like(texts, dtype=torch.bool)
    nll = -judge.backbone(NetworkInput(texts, t)).token_log_prob(texts, where).reshape(texts.shape).double().mean(-1)
    made = generated(Autoregressive(), 1, judge, judge, texts, real)
    return {"model": "ar", "sampler": "left to right", "nll": nll.tolist(), **made}


def mean_and_stderr(values: Tensor) -> tuple[float, float]:
    """Return the mean over texts and its standard error."""
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown, one table for each model; differences are to the plain sampler of the model."""
    lines = [f"# Decoding, {result['date']}", "", f"{result['texts']} texts of {result['length']} tokens.", ""]
    for model in ("ar", "adapted", "adapted_block"):
        rows = [row for row in result["rows"] if row["model"] == model]
        plain = torch.tensor(rows[0]["nll"])
        lines += [
            f"## {model}",
            "",
            "| sampler | tokens per pass | seconds per text | likelihood, nats per token | less plain | entropy |"
            " distinct-2 | rank distance |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for row in rows:
            nll = torch.tensor(row["nll"])
            shown = [mean_and_stderr(nll), mean_and_stderr(nll - plain)]
            shown += [tuple(row[key]) for key in ("entropy", "distinct_2", "rank_distance")]
            cells = " | ".join(f"{value:.3f} ± {stderr:.3f}" for value, stderr in shown)
            lines.append(
                f"| {row['sampler']} | {row['tokens_per_pass']:.2f} | {row['seconds_per_text']:.3f} | {cells} |"
            )
        lines.append("")
    return "\n".join([*lines, *cache_costs(result)])


def cache_costs(result: dict[str, Any]) -> list[str]:
    """Return what each cache costs in likelihood against no cache, by paired differences, as lines of Markdown."""
    nll = {row["sampler"]: torch.tensor(row["nll"]) for row in result["rows"] if row["model"] == "adapted"}
    lines = ["## Caches, less the same without one", "", "| sampler | nats per token |", "|---|---:|"]
    for name in nll:
        for cache in ("prefix", "both"):
            if f"cache {cache}" in name:
                value, stderr = mean_and_stderr(nll[name] - nll[name.replace(f"cache {cache}", "cache none")])
                lines.append(f"| {name} | {value:+.3f} ± {stderr:.3f} |")
    return [*lines, ""]


STYLE = (
    "<style>svg{background:#fff;font:12px system-ui,sans-serif}text{fill:#444}.grid{stroke:#e5e5e5}.axis{stroke:#888}"
    ".front{fill:none;stroke:#888;stroke-dasharray:4 3}.dot{fill:#0969da}"
    ".hollow{fill:#fff;stroke:#cf222e;stroke-width:2}"
    "polyline:not(.front){fill:none}</style>"
)


def plot(result: dict[str, Any]) -> str:
    """Return an SVG of likelihood over passes per token; hollow points are the model that was trained in blocks."""
    spots = []
    for row in result["rows"]:
        nll, _ = mean_and_stderr(torch.tensor(row["nll"]))
        point = Point(1.0 / row["tokens_per_pass"], nll)
        spots.append(Spot(row["sampler"], "", point, (f"{nll:.3f}", row["sampler"]), row["model"] == "adapted_block"))
    chart = scatter_chart(
        "Likelihood of each sampler over its passes",
        ("passes of the network per token", "nats per token"),
        spots,
        Frame(920, 460, 70, 40, 20, 50),
        lambda value: f"{value:.2f}",
    )
    return chart.replace(">", ">" + STYLE, 1).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


@torch.no_grad()
def main() -> None:
    """Measure, and write JSON, table and plot."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = {name: load(options.runs / f"family={name}") for name in ("ar", "adapted", "adapted_block")}
    judge = models["ar"]
    texts = held_out(judge, options.texts)
    real = rank_histogram(ranks(judge.backbone, texts), judge.process.vocab_size)
    rows = [ar_baseline(judge, texts, real)]
    block_size = models["adapted_block"].objective.block_size
    assert block_size is not None
    for setting in settings(block_size):
        rows.append(measured(setting, models[setting.model], judge, texts, real))
        sys.stderr.write(f"{setting.model}, {setting.name}: {sum(rows[-1]['nll']) / len(texts):.3f}\n")
    date = datetime.date.today().isoformat()
    result = {
        "date": date,
        "torch": torch.__version__,
        "texts": len(texts),
        "length": texts.shape[1],
        "held_out": {**statistics(texts)},
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{date}.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / f"{date}.md").write_text(table(result))
    (options.out / f"{date}.svg").write_text(plot(result))


if __name__ == "__main__":
    main()
