"""Bytes alive in a training step of any number of sequences and layers, from four small steps on fake tensors.

What is alive at a moment of a step grows evenly with the sequences, and all layers of a network are alike: two numbers
of sequences and two numbers of layers give it for all. Buffers of the head, which come in chunks, are added.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import nn

from dlmkit.backbones.base import Backbone
from dlmkit.planning.fake_step import PHASES, Counts, count
from dlmkit.planning.job import Job

LAYERS = (2, 3)
"""Of the networks that are run; with two the uppermost layer and the lowest are apart."""

SEQUENCES = (2, 3)
"""That are run; of one alone some copies would be no copies."""


@dataclass(frozen=True)
class Trace:
    """Bytes alive in one step of one micro-batch, weights and what the optimizer and the ranks hold left out.

    Attributes:
        start: gradients of earlier micro-batches; they are in `peak` too.
        saved: kept by the trunk for the backward pass.
        head: of the head: the hidden states of its positions, their gradients, the weight's, and buffers.
        peak: the most.
    """

    start: float
    saved: float
    head: float
    peak: float


class Tracer:
    """Gives the trace of a job for any micro-batch.

    Args:
        job: what is planned.
        checkpointing: whether activations are recomputed in the backward pass.
    """

    def __init__(self, job: Job, checkpointing: bool) -> None:
        self.job = job
        backbone = job.backbones[checkpointing]
        self.num_layers = len(backbone.sharding_units())
        layers = layers_of(backbone)
        networks = [backbone] if layers is None else [with_layers(backbone, layers, num) for num in LAYERS]
        self.counts = [[count(job, network, size) for size in SEQUENCES] for network in networks]

    def at(self, micro_size: int) -> Trace:
        """Return the trace of a step of `micro_size` sequences."""
        low, high = (self._with(counts, micro_size) for counts in (self.counts[0], self.counts[-1]))
        more = self.num_layers - LAYERS[0]
        grown = {name: value + more * (high[name] - value) for name, value in low.items()}
        peak = max(grown[phase] for phase in PHASES)
        return Trace(grown["start"], grown["saved"], grown["head"] - grown["saved"] - grown["start"], peak)

    def _with(self, counts: list[Counts], micro_size: int) -> dict[str, float]:
        """Return the bytes of a number of sequences, with the layers that were run."""
        few, many = counts
        values = {"start": float(few.start), "saved": _line(few.saved, many.saved, micro_size)}
        for phase in PHASES:
            values[phase] = _peak(few.history.get(phase, [0]), many.history.get(phase, [0]), micro_size)
        low, kind = self.job.precision.autocast, self.job.device_type
        buffers = [head.buffers(micro_size, kind, low) for head in few.heads]
        values["head"] += max(one.forward for one in buffers)
        values["head backward"] += max(one.backward for one in buffers)
        return values


def _line(few: float, many: float, micro_size: int) -> float:
    return few + (many - few) / (SEQUENCES[1] - SEQUENCES[0]) * (micro_size - SEQUENCES[0])


def _peak(few: list[int], many: list[int], micro_size: int) -> float:
    """Return the most bytes of a phase: of each moment the line through two numbers of sequences."""
    if len(few) != len(many):  # not the same operations: of the peaks alone
        return _line(max(few), max(many), micro_size)
    return max(_line(one, other, micro_size) for one, other in zip(few, many, strict=True))


def layers_of(backbone: Backbone) -> str | None:
    """Return the name of the list of a network's layers, or ``None`` where they are not one list, or too few."""
    units = backbone.sharding_units()
    for name, module in backbone.named_modules():
        if isinstance(module, nn.ModuleList) and len(units) >= LAYERS[1] and list(module) == units:
            return name
    return None


def with_layers(backbone: Backbone, name: str, num: int) -> Backbone:
    """Return a copy of a network on the meta device with `num` of the layers in the list called `name`."""
    layers = backbone.get_submodule(name)
    assert isinstance(layers, nn.ModuleList)
    every = list(layers)
    del layers[num:]  # so that they are not copied
    try:
        return copy.deepcopy(backbone)
    finally:
        layers.extend(every[num:])
