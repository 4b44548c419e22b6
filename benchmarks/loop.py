"""`dlmkit train` against the bare step: what the loop around the step costs.

    python -m benchmarks.loop [--shape quickstart|gpt2_127m ...] [--precision NAME] [--rounds N] [--steps N] [--out DIR]

The run is the one that `dlmkit train` makes: data loading, noise sequence by sequence, logs, records, the check for
steps that are not finite, all callbacks. From time to time it stands still while a copy of its network takes bare steps
on the same batches: whole-batch noise, forward, backward, clipping, optimizer. So both have turns in one process. A
CPU's times are processor time, a GPU's are wall-clock time with synchronisation at the ends of a turn.
Validation and samples are left out: they are no part of a step. Needs Hydra.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import importlib.util
import statistics
import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from benchmarks.common import clock, write_result
from benchmarks.train_step import describe_machine

GPT2 = "model_type: gpt2, resid_pdrop: 0.0, embd_pdrop: 0.0, attn_pdrop: 0.0"
SHAPES = {
    "quickstart": ["experiment=quickstart", "family=absorbing"],
    "gpt2_127m": [
        "family=absorbing",
        f"backbone.config={{{GPT2}, n_layer: 12, n_head: 12, n_embd: 768, n_positions: 513}}",
        "length=512",
        "batch.size=2",
        "tokenizer.vocab_size=50257",
    ],
}
STEPS = {"quickstart": 20, "gpt2_127m": 2}
"""Steps per turn."""


class Turns(pl.Callback):
    """Times the loop, from batch to batch, and lets bare steps take turns with it.

    Args:
        steps: per turn.
        precision: as the trainer's.
    """

    def __init__(self, steps: int, precision: str) -> None:
        self.steps = steps
        self.dtype = {"bf16-mixed": torch.bfloat16}.get(precision)
        self.loop: list[float] = []
        self.bare: list[float] = []
        self.batches: list[Any] = []
        self.began: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the network, for the bare steps."""
        self.copy: Any = copy.deepcopy(pl_module)
        self.copy.trainer = None
        self.optimizer = self.copy.make_optimizer([{"params": list(self.copy.parameters())}])

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """End a turn of the loop where it is over, and give one to the bare step."""
        if batch_idx and batch_idx % self.steps == 0:
            now = clock(pl_module.device)
            if self.began is not None:
                self.loop.append((now - self.began) / self.steps)
            begin = clock(pl_module.device)
            for one in self.batches:
                self.bare_step(one)
            self.bare.append((clock(pl_module.device) - begin) / len(self.batches))
            self.batches = []
            self.began = clock(pl_module.device)
        self.batches.append(batch)

    def bare_step(self, batch: Any) -> None:
        """Take a step without the loop."""
        from dlmkit.step import losses
        from dlmkit.types import Noised

        module, device = self.copy, batch.tokens.device
        t = module.t_sampler.sample(len(batch), torch.Generator()).t.to(device)
        generator = torch.Generator(device).manual_seed(len(self.bare))
        x_t = module.process.corrupt(batch.tokens, t, batch.scored, generator)
        noised = Noised(batch.tokens, x_t, t, batch.scored, torch.ones_like(t))
        with torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype is not None):
            loss = losses(module.objective, module.process, module.backbone, noised).total / batch.scored.numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure(shape: str, precision: str, rounds: int, steps: int) -> dict[str, Any]:
    """Return seconds per step of the loop and of the bare step, one of each per turn."""
    from dlmkit.build import build_callbacks, build_data, build_module, build_trainer
    from dlmkit.commands.messages import silence_libraries
    from dlmkit.commands.run_folder import bytes_per_token, describe, make_record
    from dlmkit.config import compose, settle_precision

    silence_libraries(progress=False)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        settings = ["validation.every_steps=1000000", "callbacks.samples.every_steps=1000000"]
        config = compose([*SHAPES[shape], *settings, f"trainer.precision={precision}"], run_dir)
        settle_precision(config, config.trainer.precision)
        config.num_steps = (rounds + 1) * steps + 1
        data = build_data(config)
        module = build_module(config, bytes_per_token(data.corpus))
        choices = dict.fromkeys(
            ("experiment", "family", "objective", "process", "corruption", "schedule", "backbone", "sampler"), "here"
        ) | {"t_sampler": "here", "data": "here"}
        summary = describe(config, run_dir, choices, None, module, data.corpus)
        record = make_record(config, run_dir, choices, None, module, summary)
        turns = Turns(steps, config.trainer.precision)
        callbacks = [record, *(one for one in build_callbacks(config) if type(one).__name__ != "SampleLogger"), turns]
        trainer = build_trainer(config, run_dir, callbacks, progress=False, steps_done=0)
        trainer.fit(module, datamodule=data)
        tokens = config.batch.size * config.length
    ratios = [bare / loop for bare, loop in zip(turns.bare[1:], turns.loop, strict=True)]
    return {
        "precision": config.trainer.precision,
        "tokens_per_step": tokens,
        "loop_seconds": turns.loop,
        "bare_seconds": turns.bare[1:],
        "loop_tokens_per_second": tokens / statistics.median(turns.loop),
        "bare_tokens_per_second": tokens / statistics.median(turns.bare[1:]),
        "ratio": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
    }


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    machine = result["machine"]
    lines = [
        f"# The loop around the step, {result['date']}",
        "",
        f"{machine['kind']}; torch {machine['torch']}; commit {machine['git_commit']}. Tokens per second of"
        " `dlmkit train` and of the bare step, in turn in one process; the ratio is the median over pairs of turns.",
        "",
        "| shape | precision | loop, tokens/s | bare step, tokens/s | ratio | least and most |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, shape in result["shapes"].items():
        rates = f"{shape['loop_tokens_per_second']:,.0f} | {shape['bare_tokens_per_second']:,.0f}"
        least, most = shape["ratio_spread"]
        lines.append(f"| {name} | {shape['precision']} | {rates} | {shape['ratio']:.3f} | {least:.2f}, {most:.2f} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--precision", default="auto", help="trainer.precision")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each")
    parser.add_argument("--steps", type=int, help="steps per turn, instead of the shape's")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("hydra") is None:
        print("benchmarks.loop runs what `dlmkit train` runs, which needs hydra-core: it is not installed")
        return
    shapes = {
        name: measure(name, options.precision, options.rounds, options.steps or STEPS[name]) for name in options.shape
    }
    machine = describe_machine("cuda" if torch.cuda.is_available() else "cpu")
    result = {"date": datetime.date.today().isoformat(), "machine": machine, "shapes": shapes}
    write_result(result, "loop", table(result), options.out)
    print(table(result))


if __name__ == "__main__":
    main()
