"""Generated text at intervals, to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from dlmkit.data.module import BlockDataModule
from dlmkit.files import write_json
from dlmkit.loggers import log_text
from dlmkit.module import DiffusionLM
from dlmkit.randomness import generator_for
from dlmkit.samplers.base import Sampler, generate
from dlmkit.types import Canvas


class SampleLogger(pl.Callback):
    """Writes samples to the loggers and to samples/step_N.json in the run's folder.

    Args:
        sampler: how to generate.
        every_steps: optimizer steps between two sets; one more set is made at the end of training.
        num_samples: texts per set.
        length: tokens per text.
        num_steps: reverse steps (an autoregressive sampler takes one per token).
        seed: the same noise in every set, so that the sets can be compared.
    """

    def __init__(
        self, sampler: Sampler, every_steps: int, num_samples: int, length: int, num_steps: int, seed: int
    ) -> None:
        if every_steps < 1 or num_samples < 1:
            raise ValueError(f"every_steps {every_steps} and num_samples {num_samples} must be at least 1")
        self.sampler = sampler
        self.every_steps = every_steps
        self.num_samples = num_samples
        self.length = length
        self.num_steps = num_steps
        self.seed = seed
        self.last_step = -1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Sample when the interval is over."""
        step = trainer.global_step  # stays for all micro-batches of a step
        if 0 < step < trainer.max_steps and step % self.every_steps == 0:
            self._sample(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sample the finished model."""
        self._sample(trainer, pl_module)

    def _sample(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.last_step == trainer.global_step:
            return
        self.last_step = trainer.global_step
        assert isinstance(pl_module, DiffusionLM)
        canvas = self._canvas(pl_module, trainer.datamodule)  # type: ignore[attr-defined]
        num_steps = self.sampler.num_steps(canvas, self.num_steps)
        rows = self._fill(pl_module, canvas)  # on every rank, since a network may be split over all of them
        if trainer.global_rank != 0:
            return
        texts = [trainer.datamodule.decode(row) for row in rows]  # type: ignore[attr-defined]
        log_text(trainer.loggers, "samples", texts, trainer.global_step)
        record = {
            "step": trainer.global_step,
            "sampler": self.sampler.name,
            "num_steps": num_steps,
            "samples": [{"prompt": None, "text": text} for text in texts],
        }
        write_json(Path(trainer.default_root_dir) / "samples" / f"step_{trainer.global_step:07d}.json", record)

    def _canvas(self, module: DiffusionLM, data: BlockDataModule) -> Canvas:
        shape = (self.num_samples, self.length)
        fixed = torch.zeros(shape, dtype=torch.bool, device=module.device)
        tokens = torch.zeros(shape, dtype=torch.int64, device=module.device)
        if not module.backbone.predicts_first:  # then the first token is given: the start of a document
            eos_id = data.vocabulary.eos_id
            assert eos_id is not None
            tokens[:, 0], fixed[:, 0] = eos_id, True
        return Canvas(tokens, fixed)

    def _fill(self, module: DiffusionLM, canvas: Canvas) -> list[list[int]]:
        """Return generated token ids, with the network in eval mode and full attention, both put back afterwards."""
        backbone, generator = module.backbone, generator_for(module.device, self.seed, "samples")
        training = backbone.training
        backbone.eval()
        with backbone.attending(1.0):
            filled = generate(backbone, module.process, self.sampler, canvas, self.num_steps, generator)
        backbone.train(training)
        rows: list[list[int]] = filled.tokens.tolist()
        return rows
