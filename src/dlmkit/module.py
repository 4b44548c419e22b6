"""DiffusionLM: couples a backbone, a process and an objective to Lightning. It owns no mathematics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from dlmkit.auxiliary import next_token_loss
from dlmkit.backbones.base import Backbone
from dlmkit.evaluation.bound import score_blocks
from dlmkit.evaluation.likelihood import LikelihoodMetric
from dlmkit.lr_schedules import LRSchedule
from dlmkit.noising import by_sequence, training_copies
from dlmkit.objectives.base import Objective
from dlmkit.processes.base import ForwardProcess
from dlmkit.randomness import generator_for
from dlmkit.ranks import shard_of
from dlmkit.sharding import shard, whole
from dlmkit.t_samplers.base import TimeSampler
from dlmkit.types import Batch, Noised, TokenLoss


class DiffusionLM(pl.LightningModule):
    """Any backbone with any process and objective, trained and validated on equal terms.

    Args:
        backbone: the network.
        process: what noise does.
        objective: what is minimised, and the bound that is reported.
        t_sampler: times of a global batch.
        optimizer: parameter groups -> optimizer.
        lr_schedule: factor on the learning rate as a function of the step.
        num_val_times: times at which each validation block is scored (1 for an exact objective).
        bytes_per_token: UTF-8 bytes per validation token, for bits per byte; ``None`` when the data is not text.
        ar_weight: weight of an auxiliary next-token loss on the clean tokens with causal attention; 0 for none.
        seed: of the noise.
    """

    flops_per_batch: float | None = None  # of a micro-batch; set by callbacks.Throughput, read by Lightning's monitor

    def __init__(
        self,
        backbone: Backbone,
        process: ForwardProcess,
        objective: Objective,
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
        self.objective = objective
        self.t_sampler = t_sampler
        self.make_optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.set_val_times(num_val_times)
        self.bytes_per_token = bytes_per_token
        self.ar_weight = ar_weight
        self.seed = seed
        self.likelihood = LikelihoodMetric()
        self.counts = torch.zeros((), dtype=torch.float64)  # scored tokens, positions, statistics of t; of this step

    def configure_model(self) -> None:
        """Split the network over devices where the strategy is lightning's ModelParallelStrategy."""
        if self.device_mesh is not None:
            shard(self.backbone, self.device_mesh)

    def set_val_times(self, num_val_times: int) -> None:
        """Score each validation block at `num_val_times` times from now on (once, if the objective is exact)."""
        self.num_val_times = 1 if self.objective.exact else num_val_times

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return this micro-batch's share of the loss per scored token of the global batch."""
        batch = self._scorable(batch)
        micro = batch_idx % self.trainer.accumulate_grad_batches
        drawn, weight, places = self._times(batch, micro)
        t, key = self.objective.noise_time(drawn), (self.seed, "noise", self.global_step)
        token_loss = self.token_loss(*training_copies(self.process, batch, t, weight, places, *key))
        num_scored = batch.scored.sum()
        # Divided by all positions here, which every micro-batch has alike, and by the global number of scored ones in
        # on_before_optimizer_step: only then is it known.
        per_token = token_loss.loss.view(-1, *batch.tokens.shape).sum(0)  # over the copies of a block
        seen = self.t_sampler.statistics(drawn, weight, per_token, batch.scored)
        self.counts = self.counts + torch.cat([torch.tensor([int(num_scored), batch.scored.numel()]), seen])
        for name, value in (("loss", token_loss.loss.detach()), ("nll", token_loss.nll)):
            self.log(f"train/{name}", value.sum() / num_scored.clamp_min(1), prog_bar=name == "loss")
        loss = token_loss.loss.sum()
        if self.ar_weight:
            ar_loss = next_token_loss(self.backbone, batch, t)
            self.log("train/ar_nll", ar_loss.detach() / num_scored.clamp_min(1))
            loss = loss + self.ar_weight * ar_loss
        return loss / batch.scored.numel()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Turn the mean over positions into the mean over scored tokens of the global batch, before clipping."""
        counts = self.trainer.strategy.reduce(self.counts.to(self.device), reduce_op="sum")
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        torch._foreach_mul_(gradients, float(counts[1] / counts[0].clamp_min(1.0)))  # 0 where nothing is scored
        self.t_sampler.observe(counts[2:].cpu())
        self.counts = torch.zeros_like(self.counts)
        self.log("train/grad_norm", whole(torch.nn.utils.get_total_norm(gradients)))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score every token of the batch at every time of the shared grid."""
        batch = self._scorable(batch)
        rank, world = shard_of(self.trainer)
        blocks = (self.likelihood.num_blocks + torch.arange(len(batch))) * world + rank  # see ValidationOrder
        scores = score_blocks(self.objective, self.process, self.backbone, batch, blocks, self.num_val_times)
        self.likelihood.update(scores, batch.scored.sum(-1))

    def on_validation_epoch_end(self) -> None:
        """Log the bound with its ends and its standard error, perplexity and bits per byte."""
        result = self.likelihood.compute()
        self.likelihood.reset()
        values = {"val/nll": result.nll, "val/nll_stderr": result.stderr, "val/ppl": result.perplexity}
        values |= {"val/reconstruction": result.reconstruction, "val/prior": result.prior}
        if self.bytes_per_token is not None:
            values["val/bpb"] = result.bits_per_byte(self.bytes_per_token)
        self.log_dict({**values, "val/tokens": float(result.num_tokens)}, rank_zero_only=True)

    def token_loss(self, batch: Batch, x_t: Tensor, t: Tensor, weight: Tensor) -> TokenLoss:
        """Predict from x_t (int64 [B, L]) at t [B], drawn with density 1 / weight [B], and return losses [B, L].

        t and weight are [B, K] where a sequence has K times (see `Objective.num_times`).
        """
        prediction = self.objective.ask(self.backbone, batch, x_t, t)
        return self.objective(prediction, Noised(batch.tokens, x_t, t, batch.scored, weight), self.process)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out pretrained weights that were never trained (adapters); add what the time sampler has learned."""
        checkpoint["t_sampler"] = self.t_sampler.state_dict()
        kept = {f"backbone.{name}" for name in self.backbone.weights_to_save()}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: value for key, value in state.items() if key in kept or "backbone." not in key}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put back what was left out, and what the time sampler had learned."""
        self.t_sampler.load_state_dict(checkpoint.get("t_sampler", {}))
        checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Decay matrices, not vectors; step the learning rate every optimizer step."""
        parameters = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
        vectors = [parameter for parameter in parameters if parameter.ndim < 2]
        optimizer = self.make_optimizer([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _scorable(self, batch: Batch) -> Batch:
        if self.backbone.predicts_first:
            return batch
        scored = batch.scored.clone()
        scored[:, 0] = False  # nothing predicts token 0, so it is given: neither noised nor counted
        return Batch(batch.tokens, scored, batch.segments)

    def _times(self, batch: Batch, micro: int) -> tuple[Tensor, Tensor, list[int]]:
        """Return (t, weight) of this micro-batch, and the places of its blocks in the global batch (TrainOrder).

        Every rank and micro-batch takes an even spread of the draw for the global batch.
        """
        accumulate, (rank, world) = self.trainer.accumulate_grad_batches, shard_of(self.trainer)
        size, num_parts = len(batch) * accumulate * world, self.objective.num_times(batch.tokens.shape[1])
        t, weight = self.t_sampler.sample(size * num_parts, generator_for("cpu", self.seed, "t", self.global_step))
        t, weight = by_sequence(t, num_parts), by_sequence(weight, num_parts)
        places = list(range(micro * world + rank, size, accumulate * world))
        return t[places].to(self.device), weight[places].to(self.device), places
