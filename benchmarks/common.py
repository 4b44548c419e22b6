"""What several benchmarks need: a network, a clock, processes that take turns, and the two files of a result."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dlmkit.backbones.hf import HFBackbone

GPT2 = {"model_type": "gpt2", "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
"""Of a GPT-2 without dropout; its sizes come beside them."""


def gpt2_config(layers: int, hidden: int, heads: int, length: int) -> dict[str, Any]:
    """Return the configuration of a GPT-2 without dropout."""
    return {**GPT2, "n_layer": layers, "n_embd": hidden, "n_head": heads, "n_positions": length}


def build_network(
    config: Mapping[str, Any], vocab_size: int, causal: bool = False, attention: str = "sdpa", recomputed: bool = False
) -> HFBackbone:
    """Return a network from scratch, shifted and without BOS, on torch's default device.

    Args:
        config: of transformers, `model_type` among its keys.
        vocab_size: V; the last id is the mask's.
        causal: attend to the past alone.
        attention: kernel.
        recomputed: whether activations are made again in the backward pass.
    """
    return HFBackbone(
        vocab_size=vocab_size,
        mask_id=vocab_size - 1,
        bos_id=None,
        causal=causal,
        shift=True,
        bos="none",
        attention=attention,
        attention_with_mask=None,
        gradient_checkpointing=recomputed,
        lora={"rank": 0},
        name=None,
        config=dict(config),
    )


def take_turns(
    worker: Callable[..., None], arguments: Mapping[str, tuple[Any, ...]], warm_up: int, rounds: int, steps: int
) -> dict[str, dict[str, Any]]:
    """Return per name: step seconds, losses (warm-up included), peak bytes. Processes take turns, `steps` at a time.

    Args:
        worker: called in a process of its own for each name, as worker(pipe, *arguments). From the pipe it gets how
            many steps to take, until 0, and answers each with (seconds, losses, peak bytes).
        arguments: by name.
        warm_up: steps of the first turn, whose times are left out.
        rounds: turns after it.
        steps: per turn.
    """
    context = multiprocessing.get_context("spawn")
    runs: dict[str, dict[str, Any]] = {name: {"seconds": [], "losses": [], "peak_bytes": 0} for name in arguments}
    pipes, processes = {}, []
    for name, own in arguments.items():
        pipes[name], end = context.Pipe()
        processes.append(context.Process(target=worker, args=(end, *own), daemon=True))
        processes[-1].start()
        end.close()  # so that a worker that stops is an EOFError here and not an endless wait
    for round_index in range(rounds + 1):
        for name, pipe in pipes.items():
            pipe.send(steps if round_index else warm_up)
            seconds, losses, runs[name]["peak_bytes"] = pipe.recv()
            runs[name]["seconds"] += seconds if round_index else []
            runs[name]["losses"] += losses
    for pipe in pipes.values():
        pipe.send(0)
    for process in processes:
        process.join()
    return runs


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(device: torch.device) -> float:
    """Return seconds: of the processor's work where that is the device, else of the clock on the wall."""
    if device.type == "cpu":
        return time.process_time()
    synchronize(device)
    return time.perf_counter()


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option --device, which `device_of` reads."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def device_of(name: str) -> str:
    """Return "cpu" or "cuda" for the value of --device."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def write_result(result: dict[str, Any], benchmark: str, table: str, folder: Path) -> None:
    """Write a result, with `date` and `machine`, as DATE-KIND-BENCHMARK.json, and its table as .md beside it."""
    kind = re.sub(r"[^a-z0-9]+", "-", result["machine"]["kind"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['date']}-{kind}-{benchmark}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table, encoding="utf-8")
