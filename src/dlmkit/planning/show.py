"""A plan as text: every figure with what it is based on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dlmkit.planning.devices import GIB
from dlmkit.planning.memory import GATHERED_LAYERS
from dlmkit.planning.plan import Plan
from dlmkit.planning.suggest import USABLE, Suggestion

MIB = 2**20


class Row(NamedTuple):
    """A line: what, its values, and what they are based on."""

    what: str
    values: tuple[str, ...]
    basis: str


def show(plan: Plan) -> str:
    """Return the plan as lines."""
    blocks = [
        _block("network", list(_network(plan))),
        _block(_memory_title(plan), list(_memory(plan))),
        _block(_time_title(plan), list(_time(plan))),
        "\n".join(_suggestion(plan)),
    ]
    return "\n\n".join(blocks)


def _block(title: str, rows: list[Row]) -> str:
    first = max(len(row.what) for row in rows)
    columns = max(len(row.values) for row in rows)
    widths = [max(len(row.values[i]) for row in rows if i < len(row.values)) for i in range(columns)]
    lines = [title]
    for row in rows:
        values = [value.rjust(width) for value, width in zip(row.values, widths, strict=False)]
        values += [" " * width for width in widths[len(values) :]]
        lines.append(f"  {row.what.ljust(first)}  {'  '.join(values)}  {row.basis}".rstrip())
    return "\n".join(lines)


def _network(plan: Plan) -> Iterator[Row]:
    parameters, operations = plan.parameters, plan.operations
    yield Row("parameters", (f"{parameters.total:,}",), "counted, tied ones once")
    yield Row("  trained", (f"{parameters.trained:,}",), "counted")
    yield Row("  frozen", (f"{parameters.frozen:,}",), "counted")
    yield Row("  embeddings", (f"{parameters.embeddings:,}",), "counted: tables of tokens and positions, and the head")
    yield Row("head runs at", (f"{plan.head_share:.0%}",), "of the positions: mean of the noisy share over t")
    yield Row("FLOPs per token", (f"{operations.training:.4g}",), "Backbone.flops_per_token: forward and backward pass")
    yield Row(
        "  recomputed", (f"{operations.recomputed:.4g}",), "gradient checkpointing: the trunk's forward pass again"
    )


def _memory_title(plan: Plan) -> str:
    job = plan.job
    how = {"single": "one device", "ddp": f"DDP, {job.ranks} devices", "fsdp2": f"FSDP2, {job.ranks} devices"}
    micro = f"micro-batch of {job.micro_size} x {job.length} tokens"
    return f"memory of each device: {how[job.strategy]}, {job.precision.name}, {micro}"


def _memory(plan: Plan) -> Iterator[Row]:
    memories = list(plan.memory.values())

    def row(what: str, name: str, basis: str) -> Row:
        return Row(what, tuple(size(getattr(memory, name)) for memory in memories), basis)

    if len(memories) > 1:
        names = {False: "kept", True: "recomputed"}
        mark = {plan.job.checkpointing: "*"}
        shown = tuple(f"{names[m.checkpointing]}{mark.get(m.checkpointing, '')}" for m in memories)
        yield Row("activations are", shown, "* as backbone.gradient_checkpointing has it")
    each = f"counted, {plan.job.precision.weights.itemsize} bytes each"
    packed = "" if plan.job.backbone.divisible else ", or 4 bits with scales"
    yield row("weights", "weights", _shards(plan, each + packed))
    yield row("gradients", "gradients", _shards(plan, "as the weights that are trained"))
    yield row("optimizer states", "optimizer", _shards(plan, "measured on small weights"))
    yield row("exchange", "exchange", _exchange(plan))
    yield row("activations", "activations", "traced: small steps on tensors without values, times layers and sequences")
    yield row("head", "head", "traced, and buffers of backbones/; as if all tokens were noisy")
    yield row("peak", "peak", "traced: less than the sum, since gradients come as activations go")
    fit = tuple(str(largest) if largest else "none" for largest in plan.largest.values())
    usable = f"{USABLE:.0%} of {size(plan.assumptions.device.memory)}"
    share = plan.job.batch_size // plan.job.ranks
    yield Row("largest micro-batch", fit, f"peak within {usable}; divides a device's {share} sequences of a step")


def _shards(plan: Plan, basis: str) -> str:
    return f"{basis}; 1/{plan.job.ranks} of all" if plan.job.strategy == "fsdp2" else basis


def _exchange(plan: Plan) -> str:
    return {
        "single": "one device exchanges nothing",
        "ddp": "arithmetic: DDP's buckets of all gradients",
        "fsdp2": f"arithmetic: embeddings and head whole, and {GATHERED_LAYERS} layers",
    }[plan.job.strategy]


def _time_title(plan: Plan) -> str:
    job, stated = plan.job, plan.assumptions
    peak = stated.device.peak_flops(job.precision.products) / 1e12
    kind = str(job.precision.products).removeprefix("torch.")
    rate = f"{stated.utilisation:.0%} (stated) of {peak:,.4g} TFLOP/s in {kind} ({stated.device.source})"
    return f"time of {job.tokens:,} tokens on {job.ranks} x {stated.device.name}: {rate}"


def _time(plan: Plan) -> Iterator[Row]:
    speed = plan.speed
    yield Row(
        "tokens/s", (f"{speed.tokens_per_second:,.0f}",), "arithmetic: rate / FLOPs, the recomputed ones included"
    )
    yield Row("time", (duration(speed.hours),), "arithmetic; no validation, no waiting for data or other devices")
    yield Row("device hours", (f"{speed.device_hours:,.4g}",), f"{plan.job.ranks} devices")
    if speed.cost is not None:
        yield Row("money", (f"{speed.cost:,.4g}",), f"at {plan.assumptions.price:g} a device hour (stated)")


def _suggestion(plan: Plan) -> Iterator[str]:
    if not plan.fits:
        yield "This run does not fit into its devices as it is."
    if plan.suggestion is None or plan.suggested_speed is None:
        yield "No strategy fits: take more devices, larger ones, or adapters (backbone.lora.rank=8)."
        return
    memory, speed = plan.suggestion.memory, plan.suggested_speed
    changes = settings(plan, plan.suggestion)
    yield f"suggested: {' '.join(changes) or 'these settings'}"
    yield f"  {plan.suggestion.reason};"
    yield (
        f"  micro-batch {memory.micro_size}, peak {size(memory.peak)}, {speed.tokens_per_second:,.0f} tokens/s,"
        f" {duration(speed.hours)}"
    )


def settings(plan: Plan, suggestion: Suggestion) -> list[str]:
    """Return the overrides, as `dlmkit train` takes them, by which a suggestion differs from the run."""
    job, memory = plan.job, suggestion.memory
    overrides = []
    if suggestion.accumulate != job.accumulate:
        overrides.append(f"batch.accumulate={suggestion.accumulate}")
    if memory.checkpointing != job.checkpointing:
        overrides.append(f"backbone.gradient_checkpointing={str(memory.checkpointing).lower()}")
    if memory.strategy != job.strategy:
        overrides.append(f"strategy={memory.strategy}")
    return overrides


def size(num_bytes: float) -> str:
    """Return bytes in GiB, or below one in MiB."""
    value, unit = (num_bytes / GIB, "GiB") if num_bytes >= GIB else (num_bytes / MIB, "MiB")
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"


def duration(hours: float) -> str:
    """Return a duration in seconds, minutes, hours or days."""
    if hours < 1 / 30:
        return f"{3600 * hours:.3g} s"
    if hours < 2:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"
