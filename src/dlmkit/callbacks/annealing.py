"""Attention-mask annealing: from causal to full attention over the first steps."""

from __future__ import annotations

from typing import Annotated, Any

import lightning.pytorch as pl

from dlmkit.backbones.attention import SHAPES
from dlmkit.module import DiffusionLM
from dlmkit.randomness import seed_for
from dlmkit.ranges import Range, Seed, checked
from dlmkit.training.logging import log_step
from dlmkit.types import Attention


class AttentionAnnealing(pl.Callback):
    """Attends to a share r of the future in training, r = min(1, (step + 1) / anneal_steps).

    Source: arXiv 2410.17891, section 3.2. One [L, L] draw per optimizer step, shared by batch, heads and layers.
    Validation and generation always use full attention: they measure the model that results.

    Args:
        anneal_steps: steps until full attention; 1 is full attention from the start.
        shape: "bernoulli" (the paper's: each future position at random), "blocks" (full attention inside blocks that
            grow from 1 to L), or "none" (full attention from the start; `anneal_steps` is not read).
        seed: of the draws.
    """

    @checked
    def __init__(
        self,
        anneal_steps: Annotated[int, Range("[1, 1000000000]", "use 1 for full attention from the first step")],
        shape: str,
        seed: Seed,
    ) -> None:
        if shape not in (*SHAPES, "none"):
            raise ValueError(f"annealing shape {shape!r} is unknown: choose one of {', '.join(SHAPES)}, none")
        self.anneal_steps = anneal_steps
        self.shape = shape
        self.seed = seed

    def ratio(self, step: int) -> float:
        """Return r at optimizer step `step`, in (0, 1]."""
        return 1.0 if self.shape == "none" else min(1.0, (step + 1) / self.anneal_steps)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set this step's attention."""
        assert isinstance(pl_module, DiffusionLM)
        ratio = self.ratio(trainer.global_step)
        shape = SHAPES[0] if self.shape == "none" else self.shape
        pl_module.attention = Attention(ratio, shape, seed_for(self.seed, "attention", trainer.global_step))
        log_step(pl_module, {"attention_ratio": ratio})
