"""Exact match of generated answers: what fine-tuning on problems with one right answer is measured by."""

from __future__ import annotations

from collections import defaultdict

import lightning.pytorch as pl
import torch
from torch import Tensor

from dlmkit.data.corpora.pairs import Pair, PairsCorpus
from dlmkit.module import DiffusionLM
from dlmkit.randomness import generator_for
from dlmkit.samplers.base import Sampler, generate
from dlmkit.types import Canvas


def answer_of(text: str, marker: str) -> str:
    """Return what stands behind the last `marker`, without commas and surrounding space; "" where there is none.

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
        batch_size: prompts at a time, all of one length.
        marker: stands before the answer in a response.
        seed: of the noise.
    """

    def __init__(
        self, sampler: Sampler, num_steps: int, num_pairs: int, batch_size: int, marker: str, seed: int
    ) -> None:
        if min(num_steps, num_pairs, batch_size) < 1:
            raise ValueError(
                f"num_steps {num_steps}, num_pairs {num_pairs} and batch_size {batch_size} must be at least 1"
            )
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
        by_length: dict[int, list[tuple[list[int], Pair]]] = defaultdict(list)
        for pair in pairs:
            prompt = corpus.encode_prompt(pair.prompt, room=corpus.length // 2)
            by_length[len(prompt)].append((prompt, pair))
        right = 0
        for group in by_length.values():
            for start in range(0, len(group), self.batch_size):
                some = group[start : start + self.batch_size]
                texts = self._respond(module, corpus, [prompt for prompt, _ in some])
                right += sum(map(self._is_right, texts, [pair for _, pair in some]))
        return right / len(pairs)

    def _respond(self, module: DiffusionLM, corpus: PairsCorpus, prompts: list[list[int]]) -> list[str]:
        given = torch.tensor(prompts, device=module.device)
        tokens = torch.zeros(len(prompts), corpus.length, dtype=torch.int64, device=module.device)
        tokens[:, : given.shape[1]] = given
        fixed = torch.zeros_like(tokens, dtype=torch.bool)
        fixed[:, : given.shape[1]] = True
        generator = generator_for(module.device, self.seed, "exact_match")
        with module.backbone.attending(1.0):
            canvas = Canvas(tokens, fixed)
            filled = generate(module.backbone, module.process, self.sampler, canvas, self.num_steps, generator)
        return [corpus.decode(_until(row, corpus.tokenizer.eos_id)) for row in filled.tokens[:, given.shape[1] :]]

    def _is_right(self, text: str, pair: Pair) -> bool:
        return answer_of(text, self.marker) == answer_of(pair.response, self.marker) != ""


def _until(row: Tensor, eos_id: int) -> list[int]:
    ids: list[int] = row.tolist()
    return ids[: ids.index(eos_id)] if eos_id in ids else ids
