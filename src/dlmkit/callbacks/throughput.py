"""Lightning's throughput monitor with the size and FLOPs of this kit's batches, and a measured peak for CPUs."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import cache
from typing import Annotated, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ThroughputMonitor
from lightning.pytorch.trainer.states import RunningStage
from typing_extensions import override

from dlmkit.module import DiffusionLM
from dlmkit.ranges import Range, checked
from dlmkit.training.budget import flops_per_token
from dlmkit.types import Batch


@dataclass(frozen=True)
class Counters:
    """What a run has counted since its first step.

    Attributes:
        batches: micro-batches.
        samples: sequences, every noisy copy counted.
        lengths: tokens, every noisy copy counted.
        seconds: of training.
    """

    batches: int = 0
    samples: int = 0
    lengths: int = 0
    seconds: float = 0.0


class Throughput(ThroughputMonitor):
    """Logs the training's sequences, tokens and FLOPs per second, and utilisation (MFU) against the machine's peak.

    Every noisy copy of a sequence counts. Lightning has the peaks of GPUs in a table; a CPU's is measured with a matrix
    product. The counters go on after a resume.

    Args:
        window_size: batches averaged over.
    """

    @checked
    def __init__(
        self, window_size: Annotated[int, Range("[2, 1000000]", "give the batches averaged over, such as 20")]
    ) -> None:
        super().__init__(batch_size_fn=len, length_fn=_num_tokens, window_size=window_size)
        self._before = Counters()

    @override
    def state_dict(self) -> dict[str, Any]:
        return asdict(self._counters())

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = Counters(**state_dict)

    def _counters(self) -> Counters:
        """Return what training has counted so far."""
        stage = RunningStage.TRAINING
        if stage not in self._t0s:  # on another rank than zero, or before the first step
            return self._before
        times = self._throughputs[stage]._time
        seconds = times[-1] if times else self._before.seconds
        return Counters(self._batches[stage], self._samples[stage], self._lengths[stage], seconds)

    @override
    def _start(self, trainer: pl.Trainer) -> None:
        super()._start(trainer)
        stage = trainer.state.stage
        if stage == RunningStage.TRAINING:
            before = self._before
            self._batches[stage], self._samples[stage] = before.batches, before.samples
            self._lengths[stage] = before.lengths
            self._t0s[stage] -= before.seconds

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        assert isinstance(pl_module, DiffusionLM)
        num_copies = pl_module.corruption.num_copies
        self.batch_size_fn = lambda batch: num_copies * len(batch)
        self.length_fn = lambda batch: num_copies * _num_tokens(batch)
        if self.available_flops is None and trainer.strategy.root_device.type == "cpu":
            self.available_flops = int(measured_cpu_flops())
            for throughput in self._throughputs.values():
                throughput.available_flops = self.available_flops

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, *arguments: Any
    ) -> None:
        assert isinstance(pl_module, DiffusionLM)
        pl_module.flops_per_batch = flops_per_token(pl_module, batch.tokens.shape[1]) * _num_tokens(batch)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, *arguments)

    @override
    def _compute(self, trainer: pl.Trainer, iter_num: int | None = None) -> None:
        if trainer.training:  # validation would count its batches as steps, beside those of the training
            super()._compute(trainer, iter_num)


@cache
def measured_cpu_flops(size: int = 1024, repeats: int = 5) -> float:
    """Return the best rate of a float32 [size, size] matrix product, in FLOP/s, on the threads that torch uses."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - begin)
    return 2.0 * size**3 / best


def _num_tokens(batch: Batch) -> int:
    return batch.tokens.numel()
