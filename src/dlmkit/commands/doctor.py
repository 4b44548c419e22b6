"""`dlmkit doctor`: what this machine has, whether one training step works on it, and whether bf16 pays."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from dlmkit.build import build_module
from dlmkit.commands.precision import measured, verdict
from dlmkit.config import compose
from dlmkit.randomness import generator_for
from dlmkit.step import losses
from dlmkit.types import Batch, TimeDraw

PACKAGES = ("torch", "lightning", "transformers", "tokenizers", "datasets", "hydra-core", "torchmetrics", "tensorboard")
EXTRAS = {"flash-attn": "flash_attn", "peft": "peft", "lm-eval": "lm_eval", "gguf": "gguf"}


def main() -> None:
    """Print the tables, then run the smoke test."""
    console = Console()
    console.print(versions())
    console.print(machine())
    for family in ("ar", "absorbing", "uniform"):
        seconds, loss = smoke(family)
        console.print(f"one training step, family={family}: loss {loss:.3f} nats/token, {1000 * seconds:.0f} ms")
    speeds = measured()
    console.print(speeds.table())
    console.print(verdict(speeds), soft_wrap=True)


def versions() -> Table:
    """Return the installed versions of what the kit needs, and of its extras."""
    table = Table("package", "version", title="packages")
    table.add_row("python", platform.python_version())
    for package in PACKAGES:
        table.add_row(package, importlib.metadata.version(package))
    for package, module in EXTRAS.items():
        present = importlib.util.find_spec(module) is not None
        table.add_row(f"{package} (extra)", importlib.metadata.version(package) if present else "not installed")
    return table


def machine() -> Table:
    """Return devices, memory and attention kernels."""
    table = Table("what", "here", title="machine")
    table.add_row("cores", str(os.cpu_count()))
    table.add_row("torch threads", str(torch.get_num_threads()))
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        table.add_row(f"cuda:{index}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        table.add_row("cuda", "none: training runs on the CPU")
    table.add_row("attention kernels", ", ".join(kernels()))
    return table


def kernels() -> list[str]:
    """Return what `backbone.attention` may be here; dit has the sdpa and the flex attention among them."""
    found = ["sdpa", "eager"]
    if torch.cuda.is_available():
        found.append("flex_attention")
        if importlib.util.find_spec("flash_attn") is not None:
            found.append("flash_attention_2")
    elif shutil.which(os.environ.get("CXX", "g++")) is not None:  # it is compiled where it is used
        found.append("flex_attention (no training on a CPU)")
    return found


def smoke(family: str) -> tuple[float, float]:
    """Take one training step of a tiny model on random tokens and return (seconds, loss)."""
    config = compose([f"family={family}", "backbone.config.n_layer=1", "length=32", "num_steps=20"], Path("."))
    config.vocab = {"size": 64, "mask_id": 63, "bos_id": 62, "eos_id": 62}
    module = build_module(config, bytes_per_token=None)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module.to(device)
    tokens = torch.randint(60, (8, 32), device=device)
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    optimizer = module.make_optimizer([{"params": list(module.parameters())}])
    begin = time.perf_counter()
    draw = module.t_sampler.sample(len(batch), generator_for("cpu", 0))
    times = TimeDraw(draw.t.to(device), draw.weight.to(device))
    noised = module.corruption.draw(module.process, batch, times, range(len(batch)), "doctor")
    loss = losses(module.objective, module.process, module.backbone, noised).total / batch.scored.sum()
    loss.backward()
    optimizer.step()
    return time.perf_counter() - begin, float(loss.detach())
