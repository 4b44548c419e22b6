"""Runs so small that a test can afford a whole one: `dlmkit` in this process, on a Markov source or a little text."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import random
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from dlmkit.checkpoints.shards import read_whole
from dlmkit.cli import main
from dlmkit.runs.contents import foreign_entry

LENGTH = 8
BATCH = 4
TOKENS = BATCH * LENGTH  # of one step

MODEL = ["backbone.config={model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 16, n_positions: 16}"]
SMALL = [
    f"length={LENGTH}",
    f"batch.size={BATCH}",
    "lr_schedule.warmup_steps=1",
    "validation.every_steps=2",
    "validation.num_times=2",
    "callbacks.samples.num_steps=2",
    "callbacks.samples.num_samples=1",
    "trainer.log_every_n_steps=1",
]
MARKOV = ["data=markov", "data.num_train_sequences=64", "data.num_val_sequences=10"]
TOY = [*MODEL, *SMALL, *MARKOV]


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on standard error."""
        assert self.err.endswith("\n"), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err[:-1]


def dlmkit(*arguments: str) -> Outcome:
    """Run the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    interrupt = signal.getsignal(signal.SIGINT)  # Lightning ignores Ctrl-C once it has seen one
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(arguments))
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    finally:
        signal.signal(signal.SIGINT, interrupt)
    return Outcome(code, out.getvalue(), err.getvalue())


def train(run_dir: str, *overrides: str, steps: int = 2, tokens: int = TOKENS) -> Outcome:
    """Train a toy in `run_dir` for a number of steps, whatever comes of it."""
    return dlmkit("train", *TOY, f"hydra.run.dir={run_dir}", f"budget.tokens={steps * tokens}", *overrides)


def trained(run_dir: str, *overrides: str, steps: int = 2, tokens: int = TOKENS) -> Path:
    """Train a toy that must succeed, and return its folder."""
    outcome = train(run_dir, *overrides, steps=steps, tokens=tokens)
    assert outcome.code == 0, outcome.err
    assert foreign_entry(Path(run_dir)) is None  # a run knows all that it writes
    return Path(run_dir)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """The final weights."""
    return checkpoint(run_dir)["state_dict"]


def checkpoint(run_dir: Path, name: str = "last.ckpt") -> dict[str, Any]:
    return read_whole(run_dir / "checkpoints" / name)


def summary(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text())


def metrics(run_dir: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv, without empty cells."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def curve(run_dir: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of one column of metrics.csv."""
    return [(int(row["step"]), float(row[name])) for row in metrics(run_dir) if name in row]


def same_end(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same weights, states and validations, to the bit."""
    saved = checkpoint(one), checkpoint(other)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "parts"):
        torch.testing.assert_close(saved[0][key], saved[1][key], rtol=0, atol=0)
    nll = [[row["val/nll"] for row in metrics(run) if "val/nll" in row] for run in (one, other)]
    return nll[0] == nll[1]


def text_corpus(path: Path, documents: int = 40) -> Path:
    """Write documents of a dozen words each, an empty line between them."""
    words = [
        "in",
        "the",
        "beginning",
        "was",
        "the",
        "word",
        "and",
        "the",
        "word",
        "was",
        "with",
        "light",
        "upon",
        "deep",
        "waters",
    ]
    generator = random.Random(0)
    lines = [" ".join(generator.choices(words, k=12)) for _ in range(documents)]
    path.write_text("\n\n".join(lines))
    return path


def text_data(path: Path) -> list[str]:
    """Overrides that put `path` in the place of the Markov source."""
    return [
        "data=text",
        f"data.source.files={path}",
        'data.source.separator="\n\n"',
        "data.val_fraction=0.25",
        "tokenizer=bytes",
    ]


class Stop(pl.Callback):
    """Presses Ctrl-C, or fails, when a run is at `step` steps and reaches `hook`."""

    def __init__(self, step: int, hook: str = "on_train_batch_end", error: str = "KeyboardInterrupt") -> None:
        self.step = step
        self.error = {"KeyboardInterrupt": KeyboardInterrupt, "RuntimeError": RuntimeError}[error]
        setattr(self, hook, self._stop)

    def _stop(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise self.error("stopped by the test")


def stop_at(step: int, hook: str = "on_train_batch_end", error: str = "KeyboardInterrupt") -> str:
    """The override that adds a `Stop`."""
    return f"+callbacks.stop={{_target_: toy_runs.Stop, step: {step}, hook: {hook}, error: {error}}}"


class StopSeed(Stop):
    """Stops one run of a sweep over seeds."""

    def __init__(self, seed: int, step: int) -> None:
        super().__init__(step)
        self.seed = seed

    def _stop(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if trainer.lightning_module.seed == self.seed:
            super()._stop(trainer, *arguments)
