"""Training step of masked diffusion: dlmkit's parts against a plain step written from the published description.

    python -m benchmarks.train_step [--shape NAME ...] [--precision float32|bf16] [--device auto|cpu|cuda] [--out DIR]

Each variant runs in a process of its own, so that peak memory is its own, and the processes take turns, so that a
machine that slows down slows both. Both start from the same weights and have the same tokens, times and noise; the run
fails unless their losses agree.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import importlib.util
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from lightning.fabric.utilities.throughput import get_available_flops
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.common import add_device, build_network, device_of, gpt2_config, synchronize, take_turns, write_result
from dlmkit.backbones.hf import HFBackbone
from dlmkit.corruption.independent import Independent
from dlmkit.objectives.masked import MaskedElbo
from dlmkit.processes.absorbing import Absorbing
from dlmkit.randomness import generator_for
from dlmkit.schedules.linear import Linear
from dlmkit.step import losses
from dlmkit.t_samplers.stratified import Stratified
from dlmkit.training.budget import head_fraction
from dlmkit.types import Noised

WARM_UP = 2
CPU_THREADS = 2
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}
"""Of the step: bf16 is autocast over float32 weights."""
LOSSES_AGREE = {"float32": 1e-4, "bf16": 2e-2}
"""Largest relative difference of two variants' losses."""
Step = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""(x_0 [B, L], t [B], generator of the noise) -> loss."""


@dataclass(frozen=True)
class Shape:
    """A GPT-2 from scratch (dropout 0) and the batch it is given; the vocabulary is GPT-2's and a mask token.

    `alone` is for sizes of which one model fills a GPU: no other variant is run, and activations are recomputed.
    """

    layers: int
    hidden: int
    heads: int
    length: int
    batch: int
    vocab: int = 50_258
    alone: bool = False

    @property
    def mask_id(self) -> int:
        """Id of the mask token, the last."""
        return self.vocab - 1


SHAPES = {
    "small_vocab50k": Shape(layers=4, hidden=256, heads=4, length=512, batch=8),
    "gpt2_127m": Shape(layers=12, hidden=768, heads=12, length=512, batch=2),
    "gpt2_127m_gpu": Shape(layers=12, hidden=768, heads=12, length=512, batch=64),
    "gpt2_355m_gpu": Shape(layers=24, hidden=1024, heads=16, length=1024, batch=16),
    "gpt2_1300m_gpu": Shape(layers=24, hidden=2048, heads=16, length=1024, batch=8),
    "gpt2_6700m_gpu": Shape(layers=32, hidden=4096, heads=32, length=1024, batch=4, alone=True),
}


def dlmkit_step(backbone: HFBackbone, shape: Shape) -> Step:
    """Return the step as a dlmkit user runs it; noise is drawn for the whole batch at once, as in the reference."""
    process, objective = Absorbing(Linear(), shape.vocab, shape.mask_id), MaskedElbo()

    def step(x_0: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        scored = torch.ones_like(x_0, dtype=torch.bool)
        scored[:, 0] = False  # no output predicts token 0
        x_t = process.corrupt(x_0, t, scored, generator)
        noised = Noised(x_0, x_t, t, scored, torch.ones_like(t))
        return losses(objective, process, backbone, noised).total / scored.sum()

    return step


def reference_step(backbone: HFBackbone, shape: Shape) -> Step:
    """Return the plain step, from the description in arXiv 2410.17891 (algorithm 1 and section 3.2).

    Full logits, a dense additive attention mask (full, as after annealing), cross-entropy at every position,
    zeroed where nothing is masked, weighted 1 / t, shifted by slicing. Departures, for equal losses: token 0 is left
    clean, no dropout, and the sum is divided by the number of scorable tokens. The model is transformers' own, with
    the weights of `backbone`.
    """
    config = copy.deepcopy(backbone.model.config)
    config.activation_function = "gelu_new"  # as published; the kit names the same function's fused form
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(backbone.model.device)
    model.load_state_dict(backbone.model.state_dict())
    backbone.model = model  # whose parameters the optimizer updates

    def step(x_0: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        batch, length = x_0.shape
        masked = torch.rand(x_0.shape, dtype=torch.float64, device=x_0.device, generator=generator) >= 1.0 - t[:, None]
        masked[:, 0] = False
        x_t = x_0.masked_fill(masked, shape.mask_id)
        device_type = x_0.device.type
        dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else torch.float32
        mask = torch.zeros(batch, 1, length, length, dtype=dtype, device=x_0.device)
        logits = model(input_ids=x_t, attention_mask=mask, use_cache=False).logits[:, :-1]
        targets, masked = x_0[:, 1:], masked[:, 1:]
        loss = F.cross_entropy(logits.reshape(-1, shape.vocab).float(), targets.reshape(-1), reduction="none")
        loss = loss.view(targets.shape).masked_fill(~masked, 0.0)
        return (loss / t[:, None].float()).sum() / masked.numel()

    return step


@dataclass(frozen=True)
class Variant:
    """A step, the attention kernel of its network, and whether the network without its head is compiled."""

    make_step: Callable[[HFBackbone, Shape], Step]
    attention: str = "sdpa"
    compiled: bool = False


VARIANTS = {
    "dlmkit": Variant(dlmkit_step),
    "reference": Variant(reference_step),
    "dlmkit_compiled": Variant(dlmkit_step, compiled=True),
    "dlmkit_flash_attention_2": Variant(dlmkit_step, "flash_attention_2"),
}


def build_backbone(shape: Shape, attention: str = "sdpa", causal: bool = False) -> HFBackbone:
    """Return the network, on torch's default device; the same weights each time."""
    torch.manual_seed(0)
    config = gpt2_config(shape.layers, shape.hidden, shape.heads, shape.length)
    return build_network(config, shape.vocab, causal, attention, recomputed=shape.alone)


def worker(pipe: Any, variant: Variant, shape: Shape, precision: str, device_name: str) -> None:
    """Run one variant in its own process: each number received is how many steps to take and time."""
    device = torch.device(device_name)
    if device.type == "cpu":
        torch.set_num_threads(CPU_THREADS)
    with device:
        backbone = build_backbone(shape, variant.attention)
    step = variant.make_step(backbone, shape)
    if variant.compiled:
        backbone.model.base_model.compile()
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=3e-4, fused=True)
    index = 0
    while num_steps := pipe.recv():
        seconds, values = [], []
        for _ in range(num_steps):
            generator = generator_for(device, "noise", index)
            x_0 = torch.randint(shape.mask_id, (shape.batch, shape.length), generator=generator, device=device)
            t = Stratified(eps=1e-3).sample(shape.batch, generator_for("cpu", "t", index)).t.to(device)
            synchronize(device)
            begin = time.perf_counter()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                loss = step(x_0, t, generator)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            synchronize(device)
            seconds.append(time.perf_counter() - begin)
            values.append(loss.item())
            index += 1
        pipe.send((seconds, values, peak_memory(device)))


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process held: resident on a CPU, allocated by torch on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def check_losses(values: dict[str, list[float]], relative: float) -> float:
    """Raise unless all variants gave the same losses, step for step; return the largest relative difference.

    The reference does not forbid the mask token, as published, which alone moves a loss by about log(1 + 1 / V).
    """
    of_reference = values.get("reference", values["dlmkit"])
    worst = max(abs(x - y) / abs(y) for own in values.values() for x, y in zip(own, of_reference, strict=True))
    if not worst <= relative:
        raise RuntimeError(f"losses differ by {worst:.1e} of their value, more than {relative:.0e}: {values}")
    return worst


def summarize(
    shape: Shape, precision: str, device: str, product_flops: float, measured: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return what is reported of one shape in one precision."""
    worst = check_losses({name: run["losses"] for name, run in measured.items()}, LOSSES_AGREE[precision])
    peak_flops = get_available_flops(torch.device(device), PRECISIONS[precision]) if device == "cuda" else None
    fraction = head_fraction(MaskedElbo(), Absorbing(Linear(), shape.vocab, shape.mask_id), Independent())
    with torch.device("meta"):
        flops_per_token = build_backbone(shape, "sdpa").flops_per_token(shape.length, fraction)
    variants = {}
    for name, run in measured.items():
        tokens_per_second = shape.batch * shape.length / statistics.median(run["seconds"])
        flops = flops_per_token * tokens_per_second  # what the loss needs, also where a variant computes more
        variants[name] = {
            "tokens_per_second": tokens_per_second,
            "step_seconds": run["seconds"],
            "peak_bytes": run["peak_bytes"],
            "flops_per_second": flops,
            "of_products": flops / product_flops,
            "mfu": flops / peak_flops if peak_flops else None,
        }
        if "reference" in measured:
            reference = measured["reference"]
            speedup = statistics.median(reference["seconds"]) / statistics.median(run["seconds"])
            variants[name] |= {"speedup": speedup, "memory_ratio": run["peak_bytes"] / reference["peak_bytes"]}
    return {**asdict(shape), "precision": precision, "largest_loss_difference": worst, "variants": variants}


def rate_of_products(device: str, precision: str) -> float:
    """Return FLOP/s of square matrix products, the fastest of ten: a ceiling for the step."""
    size = 8192 if device == "cuda" else 2048
    if device == "cpu":
        torch.set_num_threads(CPU_THREADS)
    left, right = torch.randn(2, size, size, device=device, dtype=PRECISIONS[precision])
    seconds = []
    for _ in range(10):
        synchronize(torch.device(device))
        begin = time.perf_counter()
        left @ right
        synchronize(torch.device(device))
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds)


def describe_machine(device: str) -> dict[str, Any]:
    """Return what the numbers depend on; no names of hosts or folders."""
    root = Path(__file__).parent.parent
    return {
        "kind": torch.cuda.get_device_name() if device == "cuda" else cpu_model(),
        "cores": os.cpu_count(),
        "threads": CPU_THREADS if device == "cpu" else torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "flash_attn": flash_attention(device),
        "git_commit": _git(root, "rev-parse", "--short=12", "HEAD"),
        "git_changes": bool(_git(root, "status", "--porcelain", "--", "src", "benchmarks/*.py")),
    }


def cpu_model() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def flash_attention(device: str) -> str:
    """Return whether flash_attention_2 is measured, and if not, why."""
    if device != "cuda":
        return "not measured: no GPU"
    return "measured" if importlib.util.find_spec("flash_attn") else "not measured: flash_attn is not installed"


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    machine = result["machine"]
    changes = " with uncommitted changes" if machine["git_changes"] else ""
    lines = [
        f"# Training step, {result['date']}",
        "",
        f"{machine['kind']}, {machine['cores']} cores, {machine['threads']} threads; torch {machine['torch']},"
        f" transformers {machine['transformers']}; commit {machine['git_commit']}{changes}."
        f" flash_attention_2: {machine['flash_attn']}. Matrix products alone: "
        + ", ".join(
            f"{rate / 1e12:.3g} TFLOP/s in {name}" for name, rate in machine["product_flops_per_second"].items()
        )
        + ".",
        "",
        "| shape | precision | variant | tokens/s | speedup | peak memory | ratio | TFLOP/s | of products | MFU |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for shape in result["shapes"]:
        for variant, run in shape["variants"].items():
            has_reference = "speedup" in run
            cells = [
                shape["name"],
                shape["precision"],
                variant,
                f"{run['tokens_per_second']:,.0f}",
                f"{run['speedup']:.2f}x" if has_reference else "",
                f"{run['peak_bytes'] / 2**30:.2f} GiB",
                f"{run['memory_ratio']:.2f}x" if has_reference else "",
                f"{run['flops_per_second'] / 1e12:.3g}",
                f"{100 * run['of_products']:.0f}%",
                "" if run["mfu"] is None else f"{100 * run['mfu']:.0f}%",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, help="default: the two for this kind of device")
    add_device(parser)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, help="default: both on a CPU, bf16 on a GPU")
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, help="default: all that this machine has")
    parser.add_argument("--batch", type=int, help="sequences per step, instead of the shape's")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each variant")
    parser.add_argument("--steps", type=int, default=4, help="steps per turn")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    device = device_of(options.device)
    names = options.shape or [name for name in SHAPES if name.endswith("_gpu") == (device == "cuda")]
    precisions = options.precision or (["bf16"] if device == "cuda" else list(PRECISIONS))
    machine = describe_machine(device)
    rates = {precision: rate_of_products(device, precision) for precision in precisions}
    machine["product_flops_per_second"] = rates
    result: dict[str, Any] = {"date": datetime.date.today().isoformat(), "machine": machine, "shapes": []}
    for name, precision in ((name, precision) for name in names for precision in precisions):
        shape = replace(SHAPES[name], batch=options.batch or SHAPES[name].batch)
        variants = options.variant or _variants(machine, device, shape)
        own = {variant: (VARIANTS[variant], shape, precision, device) for variant in variants}
        measured = take_turns(worker, own, WARM_UP, options.rounds, options.steps)
        result["shapes"].append({"name": name, **summarize(shape, precision, device, rates[precision], measured)})
        write_result(result, "train_step", table(result), options.out)  # after each shape: a later one may not fit
    print(table(result))


def _variants(machine: dict[str, Any], device: str, shape: Shape) -> list[str]:
    if shape.alone:
        return ["dlmkit"]
    on_gpu = ["dlmkit_compiled"] if device == "cuda" else []
    flash = ["dlmkit_flash_attention_2"] if machine["flash_attn"] == "measured" else []
    return ["dlmkit", "reference", *on_gpu, *flash]


def _git(root: Path, *arguments: str) -> str:
    completed = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return completed.stdout.strip() if completed.returncode == 0 else "unknown"


if __name__ == "__main__":
    main()
