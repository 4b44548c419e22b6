"""Memory of one rank: weights, gradients, optimizer states, what ranks exchange, activations and the head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from dlmkit.backbones.base import Backbone
from dlmkit.planning.fake_step import nbytes
from dlmkit.planning.job import Job, Strategy
from dlmkit.planning.trace import Trace, Tracer
from dlmkit.training.adamw_8bit import EightBitStates

GATHERED_LAYERS = 4
"""Layers that FSDP2 holds whole at a time: the one at work, the next, the buffer that it is gathered into, and the one
whose gradients are on their way."""

PROBE = 2**16
"""Numbers of a weight on which an optimizer shows its states. In the place of a larger one stands one with as many more
as that has beyond a multiple, since states in blocks depend on what is left over."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank.

    Attributes:
        strategy: how ranks share the work.
        checkpointing: whether activations are recomputed.
        micro_size: sequences at a time.
        weights: of the network, this rank's share of them.
        gradients: of the trained weights, at the end of the backward pass.
        optimizer: states, for as long as training lasts.
        exchange: DDP's buckets, or what FSDP2 gathers.
        activations: kept by the trunk for the backward pass; under autocast with the 16-bit copies of the weights.
        head: of the head at its positions: hidden states, gradients and buffers.
        peak: the most at any moment of a step; less than the sum, since gradients come as activations go.
    """

    strategy: Strategy
    checkpointing: bool
    micro_size: int
    weights: int
    gradients: int
    optimizer: int
    exchange: int
    activations: int
    head: int
    peak: int


@dataclass(frozen=True)
class Fixed:
    """Bytes of one rank that do not depend on its batch, as in `Memory`.

    Attributes:
        working: what the optimizer holds while it steps, beside gradients.
    """

    weights: int
    gradients: int
    optimizer: int
    exchange: int
    working: int

    @property
    def all_along(self) -> int:
        """What is there at every moment of a step."""
        return self.weights + self.optimizer + self.exchange

    @property
    def least(self) -> int:
        """What a step needs however few tokens it has."""
        return self.all_along + self.gradients + self.working


class MemoryModel:
    """Memory of a job at any micro-batch, strategy and checkpointing; traces are kept.

    Args:
        job: what is planned.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._tracers: dict[tuple[bool, bool, bool], Tracer] = {}

    def at(self, micro_size: int, checkpointing: bool, strategy: Strategy) -> Memory:
        """Return the memory with `micro_size` sequences at a time, as many micro-batches as that makes."""
        fixed, step = self.fixed(strategy), self._trace(micro_size, checkpointing, strategy)
        return Memory(
            strategy=strategy,
            checkpointing=checkpointing,
            micro_size=micro_size,
            weights=fixed.weights,
            gradients=fixed.gradients,
            optimizer=fixed.optimizer,
            exchange=fixed.exchange,
            activations=round(step.saved),
            head=round(step.head),
            peak=round(fixed.all_along + max(step.peak, fixed.gradients + fixed.working)),
        )

    def fixed(self, strategy: Strategy) -> Fixed:
        """Return what does not depend on the batch."""
        network, share = self.job.backbone, 1 / self.job.ranks if strategy == "fsdp2" else 1.0
        each = self.job.precision.weights.itemsize
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        num_trained = sum(parameter.numel() for parameter in trained)
        states, working = optimizer_bytes(self.job, trained)
        return Fixed(
            weights=round(share * network.weight_bytes(each)),
            gradients=round(share * each * num_trained),
            optimizer=round(share * states),
            exchange=exchange_bytes(network, strategy, each, num_trained),
            working=round(share * working),
        )

    def largest(self, limit: int, checkpointing: bool, strategy: Strategy, memory: float) -> int:
        """Return the largest micro-batch up to `limit` sequences whose peak is at most `memory` bytes; 0 for none."""
        fixed = self.fixed(strategy)
        if fixed.least > memory:
            return 0

        def fits(size: int) -> bool:
            return self.at(size, checkpointing, strategy).peak <= memory

        # One micro-batch alone has no gradients before it, which spares no more than their bytes: where earlier traces
        # rule it out, it is not traced.
        accumulating = self._tracers.get((checkpointing, strategy == "fsdp2", True))
        least = 0.0 if accumulating is None else fixed.all_along + accumulating.at(limit).peak - fixed.gradients
        if least <= memory and fits(limit):
            return limit
        low, high = 0, limit
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def _trace(self, micro_size: int, checkpointing: bool, strategy: Strategy) -> Trace:
        accumulates = self.job.ranks * micro_size < self.job.batch_size
        return self._tracer(checkpointing, strategy, accumulates).at(micro_size)

    def _tracer(self, checkpointing: bool, strategy: Strategy, accumulates: bool) -> Tracer:
        """Return the tracer of a way to train; weights that are whole on each rank are traced alike."""
        key = (checkpointing, strategy == "fsdp2", accumulates)
        if key not in self._tracers:
            job = replace(self.job, strategy=strategy, accumulate=2 if accumulates else 1)
            self._tracers[key] = Tracer(job, checkpointing)
        return self._tracers[key]


def optimizer_bytes(job: Job, trained: Iterable[nn.Parameter]) -> tuple[float, float]:
    """Return the bytes of an optimizer's states, and of what it holds while it steps.

    The states are read off steps on small weights. While it steps, torch's fused optimizers hold nothing more, those
    that treat all weights at once (foreach, its default on a GPU) a copy of them, and a loop two of the largest.
    """
    sizes = Counter(parameter.numel() for parameter in trained)
    probes = {size: _probe(size, job.precision.weights) for size in sizes} or {0: _probe(0, job.precision.weights)}
    optimizer = job.optimizer([{"params": list(probes.values())}])
    for probe in probes.values():
        probe.grad = torch.zeros_like(probe)
    optimizer.step()
    states = _state_bytes(optimizer)
    total = sum(number * size * states[probes[size]] / probes[size].numel() for size, number in sizes.items())
    each, largest = job.precision.weights.itemsize, max(sizes, default=0)
    defaults = optimizer.defaults
    if isinstance(optimizer, EightBitStates):
        working = optimizer.working[job.device_type] * largest
    elif defaults.get("fused"):
        working = 0
    elif defaults.get("foreach") or (defaults.get("foreach") is None and job.device_type == "cuda"):
        working = sum(sizes.elements()) * each
    else:
        working = 2 * largest * each
    return total, working


def _probe(size: int, dtype: torch.dtype) -> nn.Parameter:
    """Return a weight of at most twice PROBE numbers whose states are like those of one of `size`."""
    size = max(size, 1) if size < PROBE else PROBE + size % PROBE
    return nn.Parameter(torch.zeros((size // 64, 64) if size % 64 == 0 else (size,), dtype=dtype))


def _state_bytes(optimizer: Optimizer) -> dict[nn.Parameter, int]:
    """Return the bytes of each weight's states as they are saved, counters left out."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    saved = optimizer.state_dict()["state"]
    return {
        parameter: nbytes(leaf for leaf in tree_leaves(saved.get(index, {})) if isinstance(leaf, Tensor) and leaf.ndim)
        for index, parameter in enumerate(parameters)
    }


def exchange_bytes(network: Backbone, strategy: Strategy, each: int, num_trained: int) -> int:
    """Return what ranks hold in order to exchange it.

    DDP: buckets of all gradients. FSDP2: what is outside of the layers, whole through a step (`training/sharding.py`),
    and GATHERED_LAYERS layers, in the weights' own type.

    Args:
        network: on the meta device.
        strategy: how ranks share the work.
        each: bytes of a weight.
        num_trained: trained weights.
    """
    if strategy == "ddp":
        return each * num_trained
    if strategy == "single":
        return 0
    layers = [sum(parameter.numel() for parameter in unit.parameters()) for unit in network.sharding_units()] or [0]
    return each * (network.num_params - sum(layers) + GATHERED_LAYERS * max(layers))
