"""Generated text at intervals during training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from dlmkit.data.corpora.base import Corpus
from dlmkit.files import write_json
from dlmkit.generation import complete, for_block_size
from dlmkit.loggers import log_text
from dlmkit.module import DiffusionLM
from dlmkit.ranges import Count, Seed, Tokens, checked
from dlmkit.requests import RequestBuilder
from dlmkit.samplers.base import Sampler


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

    @checked
    def __init__(
        self,
        sampler: Sampler[Any],
        every_steps: Count,
        num_samples: Count,
        length: Tokens,
        num_steps: Count,
        seed: Seed,
    ) -> None:
        self.sampler = sampler
        self.every_steps = every_steps
        self.num_samples = num_samples
        self.length = length
        self.num_steps = num_steps
        self.seed = seed
        self.last_step = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse, before the first step, a network and data for which there is no unconditional text.

        Raises:
            ValueError: nothing predicts the first token, and there is no token to start from; texts longer than the
                network reads.
        """
        assert isinstance(pl_module, DiffusionLM)
        most = pl_module.backbone.max_length
        if self.length > most:
            raise ValueError(
                f"callbacks.samples.length {self.length} is more than this backbone's {most} positions for tokens: set"
                f" it to at most {most}, or leave it out for the length of training"
            )
        self._builder(trainer, pl_module).unconditional(self.length)

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
        requests = [self._builder(trainer, pl_module).unconditional(self.length)] * self.num_samples
        completed = complete(  # on every rank, since a network may be sharded over all of them
            pl_module.backbone,
            pl_module.process,
            for_block_size(self.sampler, pl_module.block_size),
            requests,
            self.num_steps,
            self.seed,
            batch_size=self.num_samples,
        )
        if trainer.global_rank != 0:
            return
        texts = [trainer.datamodule.corpus.decode(row) for row in completed.tokens]  # type: ignore[attr-defined]
        log_text(trainer.loggers, "samples", texts, trainer.global_step)
        record = {
            "step": trainer.global_step,
            "sampler": self.sampler.name,
            "num_steps": completed.num_steps,
            "samples": [{"prompt": None, "text": text} for text in texts],
        }
        write_json(Path(trainer.default_root_dir) / "samples" / f"step_{trainer.global_step:07d}.json", record)

    def _builder(self, trainer: pl.Trainer, module: DiffusionLM) -> RequestBuilder:
        corpus: Corpus = trainer.datamodule.corpus  # type: ignore[attr-defined]
        return RequestBuilder(module.backbone.predicts_first, corpus.vocabulary.eos_id)
