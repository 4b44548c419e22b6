"""Two steps of every experiment at toy size: its whole sweep, and everything that a run's folder must hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dlmkit.checkpoints.load import load
from dlmkit.config import compose
from toy_runs import SMALL, TOKENS, TOY, checkpoint, curve, dlmkit, metrics, summary, text_corpus, text_data, weights

FOLDER = Path(__file__).parents[2] / "experiments"
EXPERIMENTS = sorted({path.stem for path in FOLDER.glob("*.yaml")} - {"gsm8k"})  # which has a test of its own
ONE_CPU = [
    "trainer.devices=1",
    "trainer.num_nodes=1",
    "trainer.strategy=auto",
    "trainer.precision=32-true",
    "batch.accumulate=1",
]

# What docs/architecture.md lists, and what the report reads beside it.
KEYS = [
    "experiment",
    "objective",
    "process",
    "schedule",
    "backbone",
    "params",
    "tokens_seen",
    "steps",
    "val_nll",
    "val_nll_stderr",
    "val_ppl",
    "val_bpb",
    "nll_is_exact",
    "tokens_per_second",
    "peak_memory_bytes",
    "wall_seconds",
    "seed",
    "git_commit",
    "data_fingerprint",
    "status",
    "name",
    "family",
    "sampler",
    "t_sampler",
    "corruption",
    "data",
    "init_from",
    "entropy_per_token",
    "dlmkit_version",
    "total_tokens",
    "flops",
    "total_flops",
    "val_tokens",
    "val_t_grid",
]

SIZES = {
    "dlmkit.backbones.hf.HFBackbone": [
        "backbone.name=null",
        "backbone.config={model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 16, n_positions: 16}",
        "backbone.attention=sdpa",
    ],
    "dlmkit.backbones.dit.DiT": [
        "backbone.hidden_size=16",
        "backbone.num_layers=1",
        "backbone.num_heads=2",
        "backbone.cond_size=8",
    ],
}


def toy(experiment: str) -> list[str]:
    """Overrides that make an experiment small and leave the comparison that it makes."""
    config = compose([f"experiment={experiment}"], Path("."))
    smaller = [*SMALL, *SIZES[config.backbone._target_], *text_data(text_corpus(Path("text.txt")))]
    # An experiment's settings of its own data and tokenizer do not fit the toy's.
    stray = [f"~data.{key}" for key in sorted(set(own(experiment).get("data", {})) - {"val_fraction"})]
    stray += [f"~tokenizer.{key}" for key in sorted(set(own(experiment).get("tokenizer", {})))]
    return [*smaller, *stray, *ONE_CPU, f"budget.tokens={2 * TOKENS}"]


def own(experiment: str) -> dict[str, Any]:
    """The content of the experiment's file."""
    return OmegaConf.to_container(OmegaConf.load(FOLDER / f"{experiment}.yaml"))


def is_sweep(experiment: str) -> bool:
    return "hydra" in own(experiment)


def runs_of(folder: Path) -> list[Path]:
    """Run folders, in the order in which they were finished."""
    return sorted((path.parent for path in folder.glob("*/summary.json")), key=lambda run: run.stat().st_mtime_ns)


LONG = ("adaptation_ablation", "schedules", "variants")
SWEPT = [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in EXPERIMENTS]


@pytest.mark.parametrize("experiment", SWEPT)
def test_sweep(experiment: str) -> None:
    sweep = is_sweep(experiment)
    outcome = dlmkit("train", f"experiment={experiment}", *toy(experiment), *(["-m"] if sweep else []))
    assert outcome.code == 0, outcome.err
    runs = runs_of(Path("runs") / experiment)
    assert (len(runs) > 1) == sweep
    names = {run.name for run in runs}
    for run in runs:
        assert_complete(run, experiment)
        start = summary(run)["init_from"]
        assert start is None or start in names

    # One line when a run begins and one when it ends, and nothing else on a pipe.
    assert outcome.out == ""
    assert len(outcome.err.splitlines()) == 2 * len(runs)

    report = dlmkit("report", f"runs/{experiment}", "--json", "report.json")
    assert report.code == 0, report.err
    assert len(report.out.splitlines()) > len(runs)
    assert (Path("runs") / experiment / "report.html").stat().st_size > 10_000
    assert json.loads(Path("report.json").read_text())


def assert_complete(run: Path, experiment: str) -> None:
    record = summary(run)
    assert set(KEYS) <= set(record)
    assert record["status"] == "finished"
    assert record["experiment"] == experiment
    assert (record["steps"], record["tokens_seen"]) == (2, 2 * TOKENS)
    assert record["val_ppl"] == pytest.approx(math.exp(record["val_nll"]), rel=1e-4)
    assert record["val_bpb"] > 0
    assert 0 < record["val_nll_stderr"] < record["val_nll"]
    assert record["peak_memory_bytes"] > 1e7
    # The time of the steps alone, without validation and samples; at least the rate over the whole run.
    assert record["tokens_seen"] / record["wall_seconds"] < record["tokens_per_second"] < 1e6

    assert curve(run, "train/loss")[-1][0] == 1
    for column in ("train/nll", "train/grad_norm", "lr-AdamW/pg1", "tokens", "total_tokens", "total_flops"):
        assert len(curve(run, column)) >= 2, column
    assert all(math.isfinite(float(value)) for row in metrics(run) for value in row.values())
    assert curve(run, "val/nll")[-1][1] == pytest.approx(record["val_nll"])

    samples = json.loads((run / "samples" / "step_0000002.json").read_text())
    assert [sample["text"] for sample in samples["samples"]]
    assert checkpoint(run)["global_step"] == 2

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert {"train/loss", "val/nll", "train/grad_norm", "lr-AdamW/pg1"} <= set(events.Tags()["scalars"])
    assert "samples/text_summary" in events.Tags()["tensors"]
    assert "hparams" in str(events.summary_metadata)

    assert_reads_back(run)


def assert_reads_back(run: Path) -> None:
    """The resolved configuration stands alone: from it and a checkpoint comes the trained network."""
    text = (run / "config.yaml").read_text()
    assert "${" not in text
    assert "???" not in text
    assert OmegaConf.load(run / "config.yaml").num_steps == 2
    loaded = load(run)
    saved = {key.removeprefix("backbone."): value for key, value in weights(run).items()}
    torch.testing.assert_close(dict(loaded.backbone.state_dict()), saved, rtol=0, atol=0)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("with light")) == "with light"


def test_a_start_is_trained_first_and_both_budgets_count() -> None:
    """The adapted run is listed before the run that it starts from."""
    outcome = dlmkit("train", *TOY, "budget.tokens=64", "family=adapted,ar", "hydra.sweep.dir=runs/sweep", "-m")
    assert outcome.code == 0, outcome.err
    first, second = runs_of(Path("runs/sweep"))
    assert [summary(run)["family"] for run in (first, second)] == ["ar", "adapted"]
    record, start = summary(second), summary(first)
    assert record["init_from"] == start["name"] == first.name
    assert (start["tokens_seen"], start["total_tokens"]) == (64, 64)
    assert (record["tokens_seen"], record["total_tokens"]) == (64, 64 + 64)
    assert record["total_flops"] == record["flops"] + start["flops"]
    assert curve(second, "total_tokens")[0] == (0, 64 + 32)
    assert curve(second, "attention_ratio")[0] == pytest.approx((0, 0.01))

    # It does start from those weights: with a rate of zero it keeps them.
    kept = dlmkit(
        "train",
        *TOY,
        "family=adapted",
        f"init_from='{first}'",
        "optimizer.lr=0.0",
        "budget.tokens=32",
        "hydra.run.dir=kept",
    )
    assert kept.code == 0, kept.err
    torch.testing.assert_close(weights(Path("kept")), weights(first), rtol=0, atol=0)
    assert summary(Path("kept"))["total_tokens"] == 64 + 32


def test_two_seeds_have_a_start_each() -> None:
    outcome = dlmkit(
        "train", *TOY, "budget.tokens=32", "hydra.sweep.dir=runs/sweep", "family=adapted,ar", "seed=0,1", "-m"
    )
    assert outcome.code == 0, outcome.err
    records = {summary(run)["name"]: summary(run) for run in runs_of(Path("runs/sweep"))}
    assert len(records) == 4
    adapted = [record for record in records.values() if record["family"] == "adapted"]
    assert [records[record["init_from"]]["seed"] for record in adapted] == [record["seed"] for record in adapted]
