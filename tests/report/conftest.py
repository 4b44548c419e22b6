"""Run folders, written as a run writes them."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from toy_summaries import toy_summary

STEP_TOKENS = 1000
STEP_FLOPS = 6000.0

MakeRun = Callable[..., Path]


def write_run(
    root: Path,
    name: str,
    *,
    curve: list[float],
    every: int = 1000,
    start: int = 0,
    exact: bool = False,
    seed: int = 0,
    text: str = "And it came to pass",
    **changes: Any,
) -> Path:
    """Write a run whose validation NLL after (i + 1) * `every` steps is curve[i]; `start` steps came before it."""
    folder = root / name
    (folder / "samples").mkdir(parents=True)
    steps = every * len(curve)
    own, before = steps * STEP_TOKENS, start * STEP_TOKENS
    summary = toy_summary(
        name=name, init_from="family=ar" if start else None, nll_is_exact=exact, seed=seed, steps=steps,
        tokens_seen=own, total_tokens=own + before, flops=steps * STEP_FLOPS, total_flops=(steps + start) * STEP_FLOPS,
        val_nll=curve[-1], val_ppl=math.exp(curve[-1]), val_bpb=curve[-1] / 2.2, val_t_grid=None if exact else 8,
    )  # fmt: skip
    replace(summary, **changes).write(folder)
    config = {"seed": seed, "run_dir": str(folder), "family": name.split(",")[0], "optimizer": {"lr": 2e-3}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    _write_metrics(folder / "metrics.csv", curve, every, start)
    for step in (1, steps):
        samples = [{"prompt": None, "text": f"{text} {step}"}, {"prompt": "In the", "text": "In the beginning"}]
        record = {"step": step, "sampler": "ancestral", "num_steps": 64, "temperature": 1.0, "samples": samples}
        (folder / "samples" / f"step_{step:07d}.json").write_text(json.dumps(record))
    return folder


def _write_metrics(file: Path, curve: list[float], every: int, start: int) -> None:
    columns = ["step", "tokens", "total_tokens", "total_flops", "val/nll", "val/nll_stderr", "train/nll", "lr-AdamW"]
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        for index, value in enumerate(curve):
            done = (index + 1) * every
            budget = {"total_tokens": (done + start) * STEP_TOKENS, "total_flops": (done + start) * STEP_FLOPS}
            # Lightning counts steps from 0, and writes the two on different rows of the same step.
            writer.writerow({"step": done - 1, "tokens": done * STEP_TOKENS, **budget})
            writer.writerow({"step": done - 1, "val/nll": value, "val/nll_stderr": 0.02})
            writer.writerow({"step": done - 1, "train/nll": value + 0.1, "lr-AdamW": 1e-3})


@pytest.fixture
def make_run() -> MakeRun:
    """Return the function that writes a run folder."""
    return write_run


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Return a folder with an exact run of 2M tokens, one adapted from it with 1M, and two diffusion runs of 3M."""
    root = tmp_path / "quickstart"
    write_run(root, "family=ar", curve=[5.0, 4.0], exact=True)
    write_run(root, "family=adapted", curve=[5.2, 4.9], every=500, start=2000)
    write_run(root, "family=absorbing", curve=[5.9, 5.6, 5.3])
    write_run(root, "family=uniform", curve=[6.0, 5.7, 5.4])
    return root
