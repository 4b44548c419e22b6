"""One real `Trainer` step at toy size, and the gradient that it must make, written out by hand.

Shapes: G blocks in a global batch, L length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dlmkit.backbones.hf import HFBackbone
from dlmkit.data.order import BatchPlan, TrainOrder
from dlmkit.module import DiffusionLM
from dlmkit.randomness import generator_for
from dlmkit.t_samplers.base import TimeSampler
from dlmkit.types import Batch, Noised
from laws import parts

V, MASK, BOS = 11, 4, 0
G, L = 8, 6
SEED = 3


def tiny_gpt2(causal: bool, bos: str = "prepend", vocab_size: int = V, mask_id: int = MASK) -> HFBackbone:
    torch.manual_seed(0)
    backbone = HFBackbone(
        vocab_size=vocab_size,
        mask_id=mask_id,
        bos_id=BOS,
        causal=causal,
        shift=True,
        bos=bos,
        attention="sdpa",
        attention_with_mask=None,
        gradient_checkpointing=False,
        lora={"rank": 0},
        name=None,
        config={
            "model_type": "gpt2",
            "n_layer": 1,
            "n_head": 2,
            "n_embd": 8,
            "n_positions": 8,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    )
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return backbone


def constant(step: int) -> float:
    return 1.0


def module(
    objective: str,
    process: str,
    bos: str = "prepend",
    schedule: str = "log_linear",
    t_sampler: TimeSampler | None = None,
) -> DiffusionLM:
    """A module whose optimizer is plain gradient descent with rate 1: a step's update is its gradient."""
    return DiffusionLM(
        backbone=tiny_gpt2(causal=objective == "autoregressive", bos=bos),
        process=parts.process(process, schedule, vocab_size=V, mask_id=MASK),
        objective=parts.objective(objective),
        t_sampler=t_sampler or parts.t_sampler("stratified", schedule),
        optimizer=partial(torch.optim.SGD, lr=1.0),
        lr_schedule=constant,  # type: ignore[arg-type]
        num_val_times=4,
        bytes_per_token=None,
        ar_weight=0.0,
        seed=SEED,
    )


def blocks(num: int) -> Batch:
    """Blocks with 1 to L scored tokens each, in no order; the first G have fewer than the next."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(V - 1, (2 * G, L), generator=generator)[:num]
    tokens += tokens >= MASK
    scored = torch.arange(L) >= torch.tensor([5, 0, 2, 4, 1, 3, 5, 5, 0, 1, 0, 2, 0, 0, 1, 0])[:num, None]
    return Batch(tokens, scored)


def rows_of(batch: Batch) -> Callable[[list[int]], Batch]:
    return lambda rows: Batch(batch.tokens[rows], batch.scored[rows])


class ToyData(pl.LightningDataModule):
    """Deals G blocks to each step, in the order of dlmkit.data.order.TrainOrder but not shuffled."""

    def __init__(self, micro_batch_size: int, accumulate: int, num_steps: int) -> None:
        super().__init__()
        self.micro_batch_size, self.accumulate, self.num_steps = micro_batch_size, accumulate, num_steps

    def train_dataloader(self) -> DataLoader:
        shard = self.trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        num = G * self.num_steps
        plan = BatchPlan(self.micro_batch_size, self.accumulate, self.num_steps)
        order = TrainOrder(num, plan, shard["rank"], shard["num_replicas"])
        order._permuted = lambda epoch: torch.arange(num).numpy()  # type: ignore[method-assign]
        return DataLoader(range(num), batch_sampler=order, collate_fn=rows_of(blocks(num)))


class ValidationData(pl.LightningDataModule):
    """Ten blocks, in pieces of any size."""

    def __init__(self, micro_batch_size: int) -> None:
        super().__init__()
        self.micro_batch_size = micro_batch_size

    def val_dataloader(self) -> DataLoader:
        return DataLoader(range(10), batch_size=self.micro_batch_size, collate_fn=rows_of(blocks(10)))


def trainer(accumulate: int = 1, num_steps: int = 1, devices: int = 1, strategy: str = "auto") -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        max_steps=num_steps,
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def weights(model: DiffusionLM) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.backbone.parameters()]


def trained(model: DiffusionLM, micro_batch_size: int, accumulate: int, num_steps: int = 1, **keywords) -> list[Tensor]:
    """The weights after real training steps on G = micro_batch_size * accumulate * devices blocks each."""
    assert micro_batch_size * accumulate * keywords.get("devices", 1) == G
    trainer(accumulate, num_steps, **keywords).fit(model, datamodule=ToyData(micro_batch_size, accumulate, num_steps))
    return weights(model)


def by_hand(model: DiffusionLM, num_steps: int = 1) -> list[Tensor]:
    """The weights that the definition gives: w - d/dw of sum(loss) / sum(scored), all G blocks at once.

    Where the process makes copies of a block, the loss is their mean.
    """
    parameters = list(model.backbone.parameters())
    for step in range(num_steps):
        batch = rows_of(blocks(2 * G))(list(range(step * G, (step + 1) * G)))
        tokens, scored = batch.tokens, batch.scored
        if not model.backbone.predicts_first:
            scored[:, 0] = False
        drawn, weight = model.t_sampler.sample(G, generator_for("cpu", SEED, "t", step))
        times, weights_of = model.process.copies(model.objective.noise_time(drawn), weight)
        rows = [
            model.process.corrupt_copies(
                tokens[i, None], times[:, i, None], scored[i, None], generator_for("cpu", SEED, "noise", step, i)
            )
            for i in range(G)
        ]
        losses = [
            model.objective(model.backbone(x_t, t), Noised(tokens, x_t, t, scored, w), model.process).loss
            for x_t, t, w in zip(torch.cat(rows, dim=1), times, weights_of, strict=True)
        ]
        loss = torch.stack(losses).mean(0)
        model.t_sampler.observe(model.t_sampler.statistics(drawn, weight, loss, scored))
        gradients = torch.autograd.grad(loss.sum() / scored.sum(), parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter -= gradient
    return weights(model)


def assert_same(mine: list[Tensor], reference: list[Tensor]) -> None:
    # Rate 1 is far too large for unnormalised scores: their second step ends at weights of 1,000, rounded accordingly.
    largest = max(float(other.abs().max()) for other in reference)
    for one, other in zip(mine, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * max(1.0, largest / 10))


def families() -> Iterator[tuple[str, str]]:
    """(objective, process) of every objective and a process that it holds for."""
    for objective in parts.names("objective"):
        for process in parts.names("process"):
            if parts.accepts(objective, process):
                yield objective, process
