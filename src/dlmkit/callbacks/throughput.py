"""Lightning's throughput monitor with the size and FLOPs of this kit's batches, and a measured peak for CPUs."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ThroughputMonitor
from lightning.pytorch.callbacks.throughput_monitor import _plugin_to_compute_dtype
from lightning.pytorch.trainer.states import RunningStage
from typing_extensions import override

from dlmkit.module import DiffusionLM
from dlmkit.ranges import Range, checked
from dlmkit.rates import product_rate
from dlmkit.training.budget import flops_per_token
from dlmkit.training.logging import logs_now
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
    product in the run's precision. The counters go on after a resume.

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
    def _update(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, iter_num: int) -> None:
        """Count a batch. Lightning's own waits for a GPU after each; here only a batch that is logged does."""
        stage = trainer.state.stage
        assert stage is not None
        assert isinstance(pl_module, DiffusionLM)
        assert self.length_fn is not None
        if trainer.strategy.root_device.type == "cuda" and logs_now(trainer):
            torch.cuda.synchronize(trainer.strategy.root_device)
        self._batches[stage] += 1
        self._samples[stage] += self.batch_size_fn(batch)
        self._lengths[stage] += self.length_fn(batch)
        self._throughputs[stage].update(
            time=time.perf_counter() - self._t0s[stage],
            batches=self._batches[stage],
            samples=self._samples[stage],
            lengths=self._lengths[stage],
            flops=pl_module.flops_per_batch,  # type: ignore[arg-type]
        )

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        assert isinstance(pl_module, DiffusionLM)
        num_copies = pl_module.corruption.num_copies
        self.batch_size_fn = lambda batch: num_copies * len(batch)
        self.length_fn = lambda batch: num_copies * _num_tokens(batch)
        if self.available_flops is None and trainer.strategy.root_device.type == "cpu":
            dtype = _plugin_to_compute_dtype(trainer.precision_plugin)
            self.available_flops = int(product_rate(trainer.strategy.root_device, dtype))
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


def _num_tokens(batch: Batch) -> int:
    return batch.tokens.numel()
