"""Exact match of generated answers: what fine-tuning on problems with one right answer is measured by."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from dlmkit.data.corpora.pairs import Pair, PairsCorpus
from dlmkit.generation import complete, for_block_size
from dlmkit.module import DiffusionLM
from dlmkit.ranges import Count, Seed, checked
from dlmkit.requests import RequestBuilder
from dlmkit.samplers.base import Sampler


def answer_of(text: str, marker: str) -> str:
    """Return the text after the last `marker`, without commas and surrounding space; "" where there is none.

    Source: the scoring of GSM8K (arXiv 2110.14168), as in the public code of arXiv 2410.17891.
    """
    _, found, answer = text.rpartition(marker)
    return answer.strip().replace(",", "") if found else ""


class ExactMatch(pl.Callback):
    """Generates a response to validation prompts and logs `val/exact_match`, the share whose answers are equal.

    Args:
        sampler: how to generate; argmax (temperature 0) is usual.
        num_steps: reverse steps.
        num_pairs: validation pairs that are answered, the first ones; at most all are.
        batch_size: prompts at a time.
        marker: text before the answer in a response.
        seed: of the noise.
    """

    @checked
    def __init__(
        self, sampler: Sampler[Any], num_steps: Count, num_pairs: Count, batch_size: Count, marker: str, seed: Seed
    ) -> None:
        self.sampler = sampler
        self.num_steps = num_steps
        self.num_pairs = num_pairs
        self.batch_size = batch_size
        self.marker = marker
        self.seed = seed

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Answer and log."""
        assert isinstance(pl_module, DiffusionLM)
        corpus = trainer.datamodule.corpus  # type: ignore[attr-defined]
        if not isinstance(corpus, PairsCorpus):
            raise ValueError("callbacks.exact_match needs prompts with answers: set data=pairs")
        right = self.answered(pl_module, corpus)
        pl_module.log("val/exact_match", right, rank_zero_only=True)

    def answered(self, module: DiffusionLM, corpus: PairsCorpus) -> float:
        """Return the share of right answers."""
        pairs = corpus.val_pairs[: self.num_pairs]
        builder = RequestBuilder(module.backbone.predicts_first, corpus.tokenizer.eos_id)
        prompts = [corpus.encode_prompt(pair.prompt, room=corpus.length // 2) for pair in pairs]
        completed = complete(
            module.backbone,
            module.process,
            for_block_size(self.sampler, module.block_size),
            [builder.prompt(prompt, corpus.length) for prompt in prompts],
            self.num_steps,
            self.seed,
            self.batch_size,
        )
        responses = [row[len(prompt) :] for row, prompt in zip(completed.tokens, prompts, strict=True)]
        texts = [corpus.decode(_until(row, corpus.tokenizer.eos_id)) for row in responses]
        return sum(map(self._is_right, texts, pairs)) / len(pairs)

    def _is_right(self, text: str, pair: Pair) -> bool:
        return answer_of(text, self.marker) == answer_of(pair.response, self.marker) != ""


def _until(ids: list[int], eos_id: int) -> list[int]:
    return ids[: ids.index(eos_id)] if eos_id in ids else ids
