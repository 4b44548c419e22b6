"""The whole plan of a run, as a record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from dlmkit.backbones.base import Backbone
from dlmkit.planning.devices import Device
from dlmkit.planning.job import Job
from dlmkit.planning.memory import Memory, MemoryModel
from dlmkit.planning.speed import Operations, Speed, operations_of, speed_of
from dlmkit.planning.suggest import USABLE, Suggestion, divisor, suggest
from dlmkit.training.budget import head_fraction


@dataclass(frozen=True)
class Assumptions:
    """What a user states.

    Attributes:
        device: each rank's.
        utilisation: operations per second over the device's peak.
        price: of an hour of one device, or ``None``.
    """

    device: Device
    utilisation: float
    price: float | None

    @property
    def usable(self) -> float:
        """Bytes of a device that a plan fills."""
        return USABLE * self.device.memory


@dataclass(frozen=True)
class Parameters:
    """Numbers of weights, tied ones once; `embeddings` (tables of tokens and positions, head) are in the others."""

    trained: int
    frozen: int
    embeddings: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.trained + self.frozen


@dataclass(frozen=True)
class Plan:
    """What a run costs.

    Attributes:
        job: what is planned.
        assumptions: what a user states.
        parameters: of the network.
        head_share: share of the positions at which the head runs, on average.
        operations: per token.
        memory: of a rank, by checkpointing, at the run's micro-batch and strategy.
        largest: the largest micro-batch of the run's strategy that fits and divides a rank's share of the batch, by
            checkpointing; 0 for none.
        speed: of the run.
        suggestion: what to take, or ``None`` where nothing fits.
        suggested_speed: with the suggestion.
    """

    job: Job
    assumptions: Assumptions
    parameters: Parameters
    head_share: float
    operations: Operations
    memory: dict[bool, Memory]
    largest: dict[bool, int]
    speed: Speed
    suggestion: Suggestion | None
    suggested_speed: Speed | None

    @property
    def fits(self) -> bool:
        """Whether the run as it is fits into its devices."""
        return self.memory[self.job.checkpointing].peak <= self.assumptions.usable

    def as_json(self) -> dict[str, Any]:
        """Return the plan as plain numbers and texts: bytes, operations, seconds."""
        job, device = self.job, self.assumptions.device
        return {
            "devices": job.ranks,
            "device": {"name": device.name, "memory_bytes": device.memory, "rates": device.source},
            "usable_bytes": self.assumptions.usable,
            "utilisation": self.assumptions.utilisation,
            "price": self.assumptions.price,
            "precision": job.precision.name,
            "strategy": job.strategy,
            "checkpointing": job.checkpointing,
            "length": job.length,
            "batch_size": job.batch_size,
            "micro_size": job.micro_size,
            "tokens": job.tokens,
            "parameters": vars(self.parameters),
            "head_share": self.head_share,
            "flops_per_token": vars(self.operations),
            "memory": [vars(memory) for memory in self.memory.values()],
            "largest_micro_size": {"kept": self.largest.get(False), "recomputed": self.largest.get(True)},
            "fits": self.fits,
            "speed": vars(self.speed),
            "suggestion": self._suggestion_as_json(),
        }

    def _suggestion_as_json(self) -> dict[str, Any] | None:
        if self.suggestion is None or self.suggested_speed is None:
            return None
        one = self.suggestion
        return {
            "accumulate": one.accumulate,
            "reason": one.reason,
            "memory": vars(one.memory),
            "speed": vars(self.suggested_speed),
        }


def make_plan(job: Job, assumptions: Assumptions) -> Plan:
    """Return the plan of a job.

    Raises:
        ValueError: an assumption outside of its range, a peak that is not known.
    """
    operations = operations_of(job, job.checkpointing)
    speed = speed_of(job, operations, assumptions.device, assumptions.utilisation, assumptions.price)
    model = MemoryModel(job)
    share = job.batch_size // job.ranks
    memory = {ckpt: model.at(job.micro_size, ckpt, job.strategy) for ckpt in sorted(job.backbones)}
    largest = {ckpt: divisor(share, model.largest(share, ckpt, job.strategy, assumptions.usable)) for ckpt in memory}
    suggestion = suggest(model, assumptions.usable)
    suggested = None
    if suggestion is not None:
        executed = operations_of(job, suggestion.memory.checkpointing)
        suggested = speed_of(job, executed, assumptions.device, assumptions.utilisation, assumptions.price)
    return Plan(
        job=job,
        assumptions=assumptions,
        parameters=count_parameters(job.backbone),
        head_share=head_fraction(job.objective, job.process, job.corruption),
        operations=operations,
        memory=memory,
        largest=largest,
        speed=speed,
        suggestion=suggestion,
        suggested_speed=suggested,
    )


def count_parameters(network: Backbone) -> Parameters:
    """Return the numbers of a network's weights."""
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    return Parameters(trained, network.num_params - trained, sum(_tables(network).values()))


def _tables(network: Backbone) -> dict[int, int]:
    """Return the sizes of the tables that have a row for each token or position: embeddings, and a head of its own."""
    embeddings = [module for module in network.modules() if isinstance(module, nn.Embedding)]
    widths = {module.embedding_dim for module in embeddings}
    tables = {id(module.weight): module.weight.numel() for module in embeddings}
    inside = {id(module) for unit in network.sharding_units() for module in unit.modules()}
    for module in network.modules():
        if isinstance(module, nn.Linear) and id(module) not in inside and module.in_features in widths:
            tables[id(module.weight)] = module.weight.numel()
    return tables
