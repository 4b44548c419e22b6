"""DiffusionLM: couples a backbone, a process and an objective to Lightning. It contains no mathematics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from dlmkit.backbones.base import Backbone
from dlmkit.corruption.base import Corruption
from dlmkit.evaluation.likelihood import LikelihoodMetric
from dlmkit.evaluation.nelbo import score_sequences
from dlmkit.objectives.base import Objective
from dlmkit.objectives.block import num_blocks
from dlmkit.parts import Part, load_states, states, walk
from dlmkit.processes.base import ForwardProcess
from dlmkit.randomness import generator_for
from dlmkit.ranks import shard_of
from dlmkit.step import discretise, losses, without_first
from dlmkit.t_samplers.base import TimeSampler
from dlmkit.tensors import copied
from dlmkit.training.gradients import scale_and_clip
from dlmkit.training.logging import log_step
from dlmkit.training.lr_schedules.base import LRSchedule
from dlmkit.training.next_token_loss import next_token_loss
from dlmkit.training.parameter_groups import parameter_groups
from dlmkit.training.sharding import DATA, reduce_replicated, shard, total_norm
from dlmkit.training.totals import StepTotals
from dlmkit.types import FULL_ATTENTION, Attention, Batch, StepOutput, TimeDraw

BACKBONE = "backbone."
"""Prefix of the network's weights in a checkpoint."""


class DiffusionLM(pl.LightningModule):
    """Any backbone with any process and objective, trained and validated on equal terms.

    Args:
        backbone: the network.
        process: the noise.
        corruption: how noise is drawn for training.
        objective: what is minimised, and the bound that is reported.
        t_sampler: times of a global batch.
        optimizer: parameter groups -> optimizer.
        lr_schedule: factor on the learning rate as a function of the step.
        num_val_times: times at which each validation sequence is scored (1 for an exact objective).
        bytes_per_token: UTF-8 bytes per validation token, for bits per byte; ``None`` when the data is not text.
        ar_weight: weight of an auxiliary next-token loss on the clean tokens with causal attention; 0 for none.
        seed: of the noise.

    Attributes:
        attention: share of the future that the network attends to in training; a callback may change it. Validation
            and generation always use full attention.
        on_non_finite: called with the totals of a step whose loss or gradient is not finite, before the optimizer step;
            set by callbacks.FiniteSteps. Parts learn nothing from that step.
    """

    offload_shards: bool = False  # keep a sharded network's weights in main memory; set by strategies.ShardedStrategy
    flops_per_batch: float | None = None  # of a micro-batch; set by callbacks.Throughput, read by Lightning's monitor

    def __init__(
        self,
        backbone: Backbone,
        process: ForwardProcess,
        corruption: Corruption,
        objective: Objective[Any],
        t_sampler: TimeSampler,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        lr_schedule: LRSchedule,
        num_val_times: int,
        bytes_per_token: float | None,
        ar_weight: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.process = process
        self.corruption = corruption
        self.objective = objective
        self.t_sampler = t_sampler
        self.make_optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.set_val_times(num_val_times)
        self.bytes_per_token = bytes_per_token
        self.ar_weight = ar_weight
        self.seed = seed
        self.attention: Attention = FULL_ATTENTION
        self.on_non_finite: Callable[[StepTotals], None] | None = None
        self.likelihood = LikelihoodMetric()
        self.num_validated = 0  # sequences of this validation so far, on this rank
        for name, part in self.parts.items():
            if isinstance(part, nn.Module) and name not in self._modules:
                self.add_module(name, part)  # a part inside another one
        self.totals = StepTotals(self.parts)

    @property
    def parts(self) -> dict[str, Part]:
        """All parts that training may change, with those inside them, by name."""
        outer: Mapping[str, Part] = {
            "backbone": self.backbone,
            "process": self.process,
            "corruption": self.corruption,
            "objective": self.objective,
            "t_sampler": self.t_sampler,
        }
        return dict(walk(outer))

    @property
    def data_group(self) -> ProcessGroup | None:
        """The processes that read different data; ``None`` for all."""
        return None if self.device_mesh is None else self.device_mesh[DATA].get_group()

    @property
    def block_size(self) -> int | None:
        """Tokens per block of block diffusion; a callback may change it during training."""
        return self.objective.block_size

    @block_size.setter
    def block_size(self, block_size: int | None) -> None:
        self.objective.block_size = block_size

    def configure_model(self) -> None:
        """Shard the network over devices where the strategy is strategies.ShardedStrategy."""
        if self.device_mesh is not None:
            shard(self.backbone, self.device_mesh, self.trainer.strategy.root_device, self.offload_shards)
            self.likelihood.process_group = self.data_group

    def set_val_times(self, num_val_times: int) -> None:
        """Score each validation sequence at `num_val_times` times from now on (once, if the objective is exact)."""
        self.num_val_times = 1 if self.objective.exact else num_val_times

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the summed loss of the micro-batch over its number of positions, a scalar in nats.

        `on_before_optimizer_step` makes the gradient that of the loss per scored token of the global batch.
        """
        batch = self._scorable(batch)
        draw, indices = self._times(batch, batch_idx % self.trainer.accumulate_grad_batches)
        times = TimeDraw(discretise(draw.t, self.objective.num_steps), draw.weight)
        noised = self.corruption.draw(self.process, batch, times, indices, self.seed, "noise", self.global_step)
        token_loss = losses(self.objective, self.process, self.backbone, noised, self.attention)
        per_token = token_loss.loss.detach().view(-1, *batch.tokens.shape).sum(0)  # over the copies of a sequence
        self.totals.add(StepOutput(draw, per_token, noised, batch.scored))
        loss = token_loss.total
        sums = {"train/loss": loss.detach(), "train/nll": token_loss.nll.sum()}
        if self.ar_weight:
            ar_loss = next_token_loss(self.backbone, batch, times.t)
            sums["train/ar_nll"] = ar_loss.detach()
            loss = loss + self.ar_weight * ar_loss
        num_scored = batch.scored.sum().clamp_min(1)
        log_step(self, {name: value / num_scored for name, value in sums.items()}, shown=("train/loss",))
        self.totals.loss = self.totals.loss + loss.detach()
        # Divided by all positions here, which every micro-batch has alike, and by the global number of scored ones in
        # on_before_optimizer_step: only then is it known.
        return loss / batch.scored.numel()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Turn the mean over positions into that over scored tokens of the global batch, and clip its norm.

        A GPU is waited for here, once: whether loss and gradient are finite decides whether the update is made.
        """
        strategy = self.trainer.strategy
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        reduce_replicated(gradients, lambda gradient: strategy.reduce(gradient, reduce_op="mean"), self.device_mesh)
        self.totals.grad_norm = total_norm(gradients)
        totals = self.totals.reduced(lambda sums: strategy.reduce(sums.to(self.device), self.data_group, "sum"))
        self.totals = StepTotals(self.parts)
        factor = totals.num_positions / max(float(totals.num_scored), 1.0)
        _, num_ranks = shard_of(self.trainer)
        norm = float(totals.grad_norm) / num_ranks  # on every rank that of the averaged gradient
        by_norm = self.trainer.gradient_clip_algorithm != GradClipAlgorithmType.VALUE
        scale_and_clip(gradients, norm, factor, self.trainer.gradient_clip_val if by_norm else None)
        log_step(self, {"train/grad_norm": norm * factor})
        if self.on_non_finite is not None and not math.isfinite(totals.loss + totals.grad_norm):
            self.on_non_finite(totals)
        else:
            totals.update_parts()

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip single values if the trainer says so; `on_before_optimizer_step` has clipped the norm."""
        if gradient_clip_algorithm == GradClipAlgorithmType.VALUE:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score every token of the batch at every time of the shared grid."""
        batch = self._scorable(batch)
        rank, world = shard_of(self.trainer)
        indices = (self.num_validated + torch.arange(len(batch))) * world + rank  # see ValidationOrder
        self.num_validated += len(batch)
        scores = score_sequences(self.objective, self.process, self.backbone, batch, indices, self.num_val_times)
        self.likelihood.update(scores, batch.scored.sum(-1))

    def on_validation_epoch_end(self) -> None:
        """Log the bound with its boundary terms and its standard error, perplexity and bits per byte.

        Raises:
            ValueError: the bound is not finite.
        """
        result = self.likelihood.compute()
        self.likelihood.reset()
        self.num_validated = 0
        values = {"val/nll": result.nll, "val/nll_stderr": result.stderr, "val/ppl": result.perplexity}
        values |= {"val/reconstruction": result.reconstruction, "val/prior": result.prior}
        if self.bytes_per_token is not None:
            values["val/bpb"] = result.bits_per_byte(self.bytes_per_token)
        self.log_dict({**values, "val/tokens": float(result.num_tokens)}, rank_zero_only=True)
        if not math.isfinite(result.nll):
            raise ValueError(
                f"the validation at step {self.global_step} has nll {result.nll}: the run has diverged, lower"
                " optimizer.lr or change the schedule"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out pretrained weights that were never trained (adapters); add the state of parts and settings."""
        kept = {BACKBONE + name for name in self.backbone.weights_to_save()}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {
            key: value for key, value in state.items() if key in kept or not key.startswith(BACKBONE)
        }
        checkpoint["parts"] = states(self.parts)
        checkpoint["settings"] = {"block_size": self.block_size, "network": self.backbone.pretrained_config}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what was left out, the state of parts and the settings.

        Raises:
            ValueError: state that does not fit a part.
        """
        load_states(self.parts, checkpoint["parts"])
        self.block_size = checkpoint["settings"]["block_size"]
        checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Decay matrices, not vectors; step the learning rate every optimizer step."""
        optimizer = self.make_optimizer(parameter_groups(self.parameters()))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _scorable(self, batch: Batch) -> Batch:
        return batch if self.backbone.predicts_first else without_first(batch)

    def _times(self, batch: Batch, micro: int) -> tuple[TimeDraw, list[int]]:
        """Return the times of this micro-batch, and the indices of its sequences in the global batch (TrainOrder).

        Every rank and micro-batch takes an even spread of the draw for the global batch.
        """
        accumulate, (rank, world) = self.trainer.accumulate_grad_batches, shard_of(self.trainer)
        size, blocks = len(batch) * accumulate * world, num_blocks(batch.tokens.shape[1], self.block_size)
        draw = self.t_sampler.sample(size * blocks, generator_for("cpu", self.seed, "t", self.global_step))
        draw = draw.by_block(blocks)
        indices = list(range(micro * world + rank, size, accumulate * world))
        return TimeDraw(*(copied(values[indices], self.device) for values in draw)), indices
