"""One real `Trainer` step at toy size, and the gradient that it must make, written out by hand.

Shapes: G sequences in a global batch, L length, K blocks of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dlmkit.backbones.hf import HFBackbone
from dlmkit.compatibility import Parts, fit
from dlmkit.data.order import BatchPlan, TrainOrder
from dlmkit.module import DiffusionLM
from dlmkit.objectives.block import num_blocks
from dlmkit.randomness import generator_for
from dlmkit.step import discretise, losses, without_first
from dlmkit.t_samplers.base import TimeSampler
from dlmkit.types import Batch, StepOutput, TimeDraw
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
    corruption: str = "independent",
    bos: str = "prepend",
    schedule: str = "log_linear",
    t_sampler: TimeSampler | None = None,
) -> DiffusionLM:
    """A module whose optimizer is plain gradient descent with rate 1: a step's update is its gradient."""
    return DiffusionLM(
        backbone=tiny_gpt2(causal=objective == "autoregressive", bos=bos),
        process=parts.process(process, schedule, vocab_size=V, mask_id=MASK),
        corruption=parts.corruption(corruption),
        objective=parts.objective(objective),
        t_sampler=t_sampler or parts.t_sampler("stratified", schedule),
        optimizer=partial(torch.optim.SGD, lr=1.0),
        lr_schedule=constant,  # type: ignore[arg-type]
        num_val_times=4,
        bytes_per_token=None,
        ar_weight=0.0,
        seed=SEED,
    )


def sequences(num: int) -> Batch:
    """Sequences with 1 to L scored tokens each, in no order; the first G have fewer than the next."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(V - 1, (2 * G, L), generator=generator)[:num]
    tokens += tokens >= MASK
    scored = torch.arange(L) >= torch.tensor([5, 0, 2, 4, 1, 3, 5, 5, 0, 1, 0, 2, 0, 0, 1, 0])[:num, None]
    return Batch(tokens, scored)


def rows_of(batch: Batch) -> Callable[[Sequence[int]], Batch]:
    return lambda rows: Batch(batch.tokens[list(rows)], batch.scored[list(rows)])


class ToyData(pl.LightningDataModule):
    """G sequences for each step, in the order of dlmkit.data.order.TrainOrder but not shuffled."""

    def __init__(self, micro_batch_size: int, accumulate: int, num_steps: int) -> None:
        super().__init__()
        self.micro_batch_size, self.accumulate, self.num_steps = micro_batch_size, accumulate, num_steps

    def train_dataloader(self) -> DataLoader:
        shard = self.trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        num = G * self.num_steps
        plan = BatchPlan(self.micro_batch_size, self.accumulate, self.num_steps)
        order = TrainOrder(num, plan, shard["rank"], shard["num_replicas"])
        order._permuted = lambda epoch: torch.arange(num).numpy()  # type: ignore[method-assign]
        return DataLoader(range(num), batch_sampler=order, collate_fn=rows_of(sequences(num)))


class ValidationData(pl.LightningDataModule):
    """Ten sequences, in micro-batches of any size."""

    def __init__(self, micro_batch_size: int) -> None:
        super().__init__()
        self.micro_batch_size = micro_batch_size

    def val_dataloader(self) -> DataLoader:
        return DataLoader(range(10), batch_size=self.micro_batch_size, collate_fn=rows_of(sequences(10)))


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
    """The weights after real training steps on G = micro_batch_size * accumulate * devices sequences each."""
    assert micro_batch_size * accumulate * keywords.get("devices", 1) == G
    trainer(accumulate, num_steps, **keywords).fit(model, datamodule=ToyData(micro_batch_size, accumulate, num_steps))
    return weights(model)


def by_hand(model: DiffusionLM, num_steps: int = 1) -> list[Tensor]:
    """The weights that the definition gives: w - d/dw of sum(loss) / sum(scored), all G sequences at once.

    Where the corruption makes copies of a sequence, the loss is their mean.
    """
    parameters = list(model.backbone.parameters())
    num = num_blocks(L, model.block_size)
    for step in range(num_steps):
        batch = rows_of(sequences(2 * G))(range(step * G, (step + 1) * G))
        if not model.backbone.predicts_first:
            batch = without_first(batch)
        draw = model.t_sampler.sample(G * num, generator_for("cpu", SEED, "t", step)).by_block(num)
        times = TimeDraw(discretise(draw.t, model.objective.num_steps), draw.weight)
        noised = model.corruption.draw(model.process, batch, times, range(G), SEED, "noise", step)
        loss = losses(model.objective, model.process, model.backbone, noised).loss
        per_token = loss.detach().view(-1, G, L).sum(0)  # weights are divided by the number of copies
        model.t_sampler.update(model.t_sampler.collect(StepOutput(draw, per_token, noised, batch.scored)))
        gradients = torch.autograd.grad(loss.sum() / batch.scored.sum(), parameters, allow_unused=True)
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


def families() -> Iterator[tuple[str, str, str]]:
    """(objective, process, corruption) of every combination that fits."""
    for objective, process, _ in parts.objective_cases(parts.LINEAR):
        for corruption in parts.names("corruption"):
            made = Parts(parts.process(process), parts.objective(objective), parts.corruption(corruption))
            if fit(made):
                yield objective, process, corruption
