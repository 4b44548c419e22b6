"""Memory and operations of real training steps against what `dlmkit plan` says of them.

    python -m benchmarks.memory [--shape NAME ...] [--device auto|cpu|cuda] [--out DIR]

Each case (shape, objective, activations kept or recomputed) takes real steps of the kit's own parts, with AdamW. Memory
is, on a CPU, the largest resident size of a process of its own above its size before the model; on a GPU torch's most
allocated bytes. Operations are counted by torch's FlopCounterMode. The exit code is 1 when a plan is off by more than
TOLERANCE. A case that does not fit into a GPU is said to.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import itertools
import multiprocessing
import os
import re
import resource
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks.common import add_device, build_network, device_of, gpt2_config, write_result
from benchmarks.train_step import describe_machine
from dlmkit.backbones.hf import HFBackbone
from dlmkit.corruption.independent import Independent
from dlmkit.objectives.autoregressive import Autoregressive
from dlmkit.objectives.masked import MaskedElbo
from dlmkit.planning.job import Job, precision_of
from dlmkit.planning.memory import MemoryModel
from dlmkit.planning.speed import operations_of
from dlmkit.processes.absorbing import Absorbing
from dlmkit.processes.none import NoNoise
from dlmkit.randomness import generator_for
from dlmkit.schedules.linear import Linear
from dlmkit.step import losses
from dlmkit.training.parameter_groups import parameter_groups
from dlmkit.types import Noised

TOLERANCE = 0.15
STEPS = 2
"""The first makes the optimizer's states; the second has all there is."""
NOISE_TIME = 0.5
FREED_AT_ONCE = "65536"
"""Bytes from which on glibc gives freed memory back at once; otherwise it keeps holes between blocks, in these steps up
to 0.6 times as much again, which a plan of tensors cannot know."""
OPTIMIZER = partial(torch.optim.AdamW, lr=1e-4)


@dataclass(frozen=True)
class Shape:
    """A network from scratch and its micro-batch; the last id of the vocabulary is the mask."""

    config: dict[str, Any]
    vocab: int
    length: int
    batch: int


def gpt2(layers: int, hidden: int, heads: int, length: int, batch: int) -> Shape:
    """Return a GPT-2 shape without dropout, with GPT-2's vocabulary and a mask."""
    return Shape(gpt2_config(layers, hidden, heads, length), 50_258, length, batch)


def llama(layers: int, hidden: int, heads: int, inner: int, vocab: int, length: int, batch: int) -> Shape:
    """Return a LLaMA shape with a head of its own."""
    config = {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": inner,
        "max_position_embeddings": length,
        "tie_word_embeddings": False,
    }
    return Shape(config, vocab, length, batch)


SHAPES = {
    "gpt2_16m": gpt2(4, 256, 4, length=512, batch=8),
    "gpt2_51m": gpt2(8, 512, 8, length=1024, batch=1),
    "gpt2_127m": gpt2(12, 768, 12, length=512, batch=2),
    "llama_14m": llama(6, 320, 5, 864, vocab=8192, length=256, batch=8),
    "llama_110m": llama(10, 768, 12, 2048, vocab=32_000, length=256, batch=2),
    "gpt2_127m_gpu": gpt2(12, 768, 12, length=512, batch=32),
    "gpt2_355m_gpu": gpt2(24, 1024, 16, length=1024, batch=8),
    "llama_1b3_gpu": llama(24, 2048, 16, 5504, vocab=32_000, length=2048, batch=2),
}


@dataclass(frozen=True)
class Case:
    """What is measured once."""

    name: str
    objective: str
    recomputed: bool
    device: str

    @property
    def shape(self) -> Shape:
        """The network and its batch."""
        return SHAPES[self.name]


def build_backbone(case: Case, recomputed: bool) -> HFBackbone:
    """Return the network, on torch's default device."""
    causal = case.objective == "autoregressive"
    return build_network(case.shape.config, case.shape.vocab, causal, recomputed=recomputed)


def job_of(case: Case, noisy_share: float) -> Job:
    """Return the job that is planned, of one micro-batch on one device."""
    vocab, causal = case.shape.vocab, case.objective == "autoregressive"
    with torch.device("meta"):
        networks = {recomputed: build_backbone(case, recomputed) for recomputed in (False, True)}
    return Job(
        backbones=networks,
        objective=Autoregressive() if causal else MaskedElbo(),
        process=NoNoise(vocab, vocab - 1) if causal else Absorbing(Linear(), vocab, vocab - 1),
        corruption=Independent(),
        ar_weight=0.0,
        optimizer=OPTIMIZER,
        length=case.shape.length,
        batch_size=case.shape.batch,
        accumulate=1,
        tokens=case.shape.batch * case.shape.length,
        ranks=1,
        strategy="single",
        precision=precision_of("auto", case.device),
        checkpointing=case.recomputed,
        device_type=case.device,
        noisy_share=noisy_share,
    )


def noised_batch(job: Job, device: str, index: int) -> Noised:
    """Return a batch of random tokens with its noise; token 0 is given, since no output predicts it."""
    generator = generator_for(device, "benchmark", index)
    size = (job.batch_size, job.length)
    x_0 = torch.randint(job.backbone.vocab_size - 1, size, generator=generator, device=device)
    t = torch.full((job.batch_size,), NOISE_TIME, dtype=torch.float64, device=device)
    scored = torch.ones_like(x_0, dtype=torch.bool)
    scored[:, 0] = False
    x_t = job.process.corrupt(x_0, t, scored, generator) if job.process.has_noise else x_0
    return Noised(x_0, x_t, t, scored, torch.ones_like(t))


def take_step(job: Job, backbone: HFBackbone, optimizer: torch.optim.Optimizer | None, noised: Noised) -> None:
    """Take a training step as a run of the kit does: losses, gradients, their norm clipped, optimizer."""
    device_type = noised.x_0.device.type
    with torch.autocast(device_type, dtype=job.precision.products, enabled=job.precision.autocast):
        loss = losses(job.objective, job.process, backbone, noised).total / noised.scored.sum()
    loss.backward()
    if optimizer is not None:
        torch.nn.utils.clip_grad_norm_(backbone.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def peak_of_steps(case: Case) -> int:
    """Return the most bytes of STEPS steps above those before the network was made."""
    job, device = job_of(case, NOISE_TIME), case.device
    warm_up(device)
    before = bytes_now(device)
    torch.manual_seed(0)
    with torch.device(device):
        backbone = build_backbone(case, case.recomputed).train()
    optimizer = OPTIMIZER(parameter_groups(backbone.parameters()))
    for index in range(STEPS):
        take_step(job, backbone, optimizer, noised_batch(job, device, index))
    if device == "cuda":
        return torch.cuda.max_memory_allocated() - before
    return peak_resident() - before


def warm_up(device: str) -> None:
    """Load kernels and libraries, so that the network alone is measured; forget what that took."""
    small = torch.randn(64, 64, device=device, requires_grad=True)
    (small @ small).sum().backward()
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def bytes_now(device: str) -> int:
    """Return the bytes that this process holds: resident on a CPU, allocated by torch on a GPU."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak_resident() -> int:
    """Return the largest resident size of this process, on Linux; ru_maxrss would be at least its parent's."""
    (line,) = re.findall(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(line) * 1024


def flops_of_step(case: Case) -> tuple[float, float]:
    """Return the operations of a step as torch counts them, and the share of positions that is noisy in it.

    torch has no count of `addmm_` and of its attention on a CPU: counted here as the products that they are.
    """
    job, device = job_of(case, NOISE_TIME), case.device
    aten = torch.ops.aten
    mapping = {
        aten.addmm_: _addmm_flops,
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    }
    with torch.device(device):
        backbone = build_backbone(case, case.recomputed).train()
    noised = noised_batch(job, device, 0)
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        take_step(job, backbone, None, noised)
    share = float((noised.x_t != noised.x_0).double().mean()) if job.process.has_noise else 1.0
    return float(counter.get_total_flops()), share


def _addmm_flops(total: Any, left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward_flops(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * int(sdpa_flop_count(query, key, value))


def worker(pipe: Any, case: Case) -> None:
    """Measure a case in its own process."""
    torch.set_num_threads(1)
    pipe.send(peak_of_steps(case))


def measured_peak(case: Case) -> int | None:
    """Return the measured peak, or ``None`` where it does not fit into the GPU."""
    if case.device == "cuda":
        try:
            return peak_of_steps(case)
        except torch.OutOfMemoryError:
            return None
        finally:
            gc.collect()
            torch.cuda.empty_cache()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = FREED_AT_ONCE
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=worker, args=(sender, case))
    process.start()
    sender.close()  # so that a process that dies is an EOFError here and not an endless wait
    peak: int = receiver.recv()
    process.join()
    return peak


def measure(case: Case) -> dict[str, Any]:
    """Return a case with what was measured and what its plan says."""
    peak = measured_peak(case)
    counted, share = (None, NOISE_TIME) if peak is None else flops_of_step(case)
    job = job_of(case, share)
    planned = MemoryModel(job).at(case.shape.batch, case.recomputed, "single")
    flops = _planned_flops(job, share)
    result = {
        **asdict(case),
        **asdict(case.shape),
        "params": job.backbone.num_params,
        "precision": job.precision.name,
        "peak_bytes": {"planned": planned.peak, "measured": peak},
        "memory": asdict(planned),
        "flops": {"planned": flops, "measured": counted},
    }
    gc.collect()
    print(_line(result), flush=True)
    return result


def _planned_flops(job: Job, share: float) -> float:
    """Return the plan's operations of a step; the head's at the share of this one batch, not at the mean over t."""
    network = job.backbone
    recomputed = operations_of(job, job.checkpointing).recomputed
    return (network.flops_per_token(job.length, share) + recomputed) * job.batch_size * job.length


def off(result: dict[str, Any], what: str) -> float | None:
    """Return how far the plan is from what was measured, as a share; ``None`` where nothing was."""
    planned, measured = result[what]["planned"], result[what]["measured"]
    return None if measured is None else planned / measured - 1.0


def _line(result: dict[str, Any]) -> str:
    memory, flops = off(result, "peak_bytes"), off(result, "flops")
    measured = result["peak_bytes"]["measured"]
    cells = [
        result["name"],
        f"{result['params'] / 1e6:.0f}M",
        f"{result['batch']} x {result['length']}",
        result["objective"],
        "recomputed" if result["recomputed"] else "kept",
        f"{result['peak_bytes']['planned'] / 2**20:,.0f}",
        "does not fit" if measured is None else f"{measured / 2**20:,.0f}",
        "" if memory is None else f"{memory:+.1%}",
        f"{result['flops']['planned']:.4g}",
        "" if flops is None else f"{result['flops']['measured']:.4g}",
        "" if flops is None else f"{flops:+.1%}",
    ]
    return f"| {' | '.join(cells)} |"


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    machine = results["machine"]
    changes = " with uncommitted changes" if machine["git_changes"] else ""
    return "\n".join(
        [
            f"# Memory and operations against the plan, {results['date']}",
            "",
            f"{machine['kind']}, torch {machine['torch']}, transformers {machine['transformers']}; commit"
            f" {machine['git_commit']}{changes}; {results['cases'][0]['precision']}, sdpa, AdamW.",
            "",
            "| shape | parameters | batch | objective | activations | planned MiB | measured MiB | off | planned FLOPs"
            " | counted FLOPs | off |",
            "|---|---:|---:|---|---|---:|---:|---:|---:|---:|---:|",
            *(_line(result) for result in results["cases"]),
            "",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write both files, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, help="default: those for this kind of device")
    add_device(parser)
    parser.add_argument("--objective", nargs="+", choices=("masked", "autoregressive"), help="default: both")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    device = device_of(options.device)
    names = options.shape or [name for name in SHAPES if name.endswith("_gpu") == (device == "cuda")]
    objectives = options.objective or ["masked", "autoregressive"]
    torch.set_num_threads(1)
    machine = describe_machine(device)
    cases: list[dict[str, Any]] = []
    results = {"date": datetime.date.today().isoformat(), "machine": machine, "cases": cases}
    for objective, recomputed, name in itertools.product(objectives, (False, True), names):
        cases.append(measure(Case(name, objective, recomputed, device)))
        write_result(
            results, "memory", table(results), options.out
        )  # after each, so that a run that is stopped has what it measured
    print(table(results))
    wrong = [one for one in cases for what in ("peak_bytes", "flops") if abs(off(one, what) or 0.0) > TOLERANCE]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
