"""Operations, time and money of a run, from a stated peak and a stated utilisation."""

from __future__ import annotations

from dataclasses import dataclass

from dlmkit.objectives.block import num_blocks
from dlmkit.planning.devices import Device
from dlmkit.planning.job import Job
from dlmkit.training.budget import flops_per_token


@dataclass(frozen=True)
class Operations:
    """Floating-point operations per token of the budget.

    Attributes:
        training: forward and backward pass; what utilisation of a model (MFU) counts.
        recomputed: of the forward pass that checkpointing does again.
    """

    training: float
    recomputed: float

    @property
    def executed(self) -> float:
        """What a device computes."""
        return self.training + self.recomputed


@dataclass(frozen=True)
class Speed:
    """Time and money of a run.

    Attributes:
        tokens_per_second: of all devices.
        hours: of the budget.
        device_hours: hours times devices.
        cost: device hours at the price, or ``None`` without one.
    """

    tokens_per_second: float
    hours: float
    device_hours: float
    cost: float | None


def operations_of(job: Job, checkpointing: bool) -> Operations:
    """Return the operations per token; recomputing repeats the trunk's forward pass, a third of its operations."""
    training = flops_per_token(job, job.length)
    passes = (2 if num_blocks(job.length, job.block_size) > 1 else 1) * job.corruption.num_copies
    passes += 1 if job.ar_weight else 0
    trunk = job.backbone.flops_per_token(job.length, head_fraction=0.0) * passes
    return Operations(training, trunk / 3 if checkpointing else 0.0)


def speed_of(job: Job, operations: Operations, device: Device, utilisation: float, price: float | None) -> Speed:
    """Return the speed at a utilisation of the device's peak; what ranks wait for each other has to be in it.

    Args:
        job: what is planned.
        operations: per token.
        device: each rank's.
        utilisation: operations per second over the peak's, in (0, 1].
        price: of an hour of one device, or ``None``.

    Raises:
        ValueError: a utilisation or a price outside of its range; a peak that is not known.
    """
    if not 0.0 < utilisation <= 1.0:
        raise ValueError(f"--utilisation {utilisation} is outside (0, 1]: give the share of the peak, such as 0.4")
    if price is not None and not 0.0 <= price < 1e9:
        raise ValueError(f"--price {price} is outside [0, 1e9): give the price of an hour of one device")
    rate = job.ranks * device.peak_flops(job.precision.products) * utilisation
    tokens_per_second = rate / operations.executed
    hours = job.tokens / tokens_per_second / 3600
    device_hours = hours * job.ranks
    return Speed(tokens_per_second, hours, device_hours, None if price is None else price * device_hours)
