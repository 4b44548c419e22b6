"""The data module hands Lightning the batches that it promises, also after a resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from data_helpers import make_documents
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from dlmkit.data.corpora.base import Corpus
from dlmkit.data.corpora.text import TextCorpus
from dlmkit.data.module import CorpusDataModule
from dlmkit.data.order import BatchPlan
from dlmkit.data.sequences import PADDING, SequenceDataset
from dlmkit.data.sources.text import Text
from dlmkit.data.tokenizers import load_tokenizer
from dlmkit.data.tokenizers.bpe import BPE
from dlmkit.types import Batch

Make = Callable[..., TextCorpus]
PLAN = BatchPlan(micro_batch_size=4, accumulate=2, num_steps=5)


def loaders(corpus: Corpus, plan: BatchPlan = PLAN) -> CorpusDataModule:
    return CorpusDataModule(corpus, plan)


class Recorder(LightningModule):
    """One weight, and a memory of what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []
        self.validated = 0

    def training_step(self, batch: Batch, index: int) -> Tensor:
        self.seen.append(batch.tokens.flatten().tolist())
        return self.weight * batch.scored.sum()

    def validation_step(self, batch: Batch, index: int) -> None:
        self.validated += int(batch.scored.sum())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, module: CorpusDataModule, steps: int, checkpoint: Path | None = None) -> Recorder:
    recorder = Recorder()
    saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = Trainer(
        max_steps=steps,
        accumulate_grad_batches=module.plan.accumulate,
        accelerator="cpu",
        use_distributed_sampler=False,
        logger=False,
        callbacks=[saver],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=module.plan.accumulate * 5,
        check_val_every_n_epoch=None,
    )
    trainer.fit(recorder, module, ckpt_path=checkpoint, weights_only=False)
    assert trainer.global_step == steps
    return recorder


def test_lightning_run_sees_the_stream_and_a_resumed_one_its_tail(make_corpus: Make, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", loaders(make_corpus()), 5)
    promised = [batch.tokens.flatten().tolist() for batch in loaders(make_corpus()).train_dataloader()]
    assert whole.seen == promised
    assert len(promised) == 10
    resumed = fit(tmp_path / "resumed", loaders(make_corpus()), 5, tmp_path / "whole" / "step=3.ckpt")
    assert resumed.seen == promised[6:]
    assert whole.validated == resumed.validated == make_corpus().num_val_tokens


def test_batches_are_int64_scored_everywhere_with_segments_on_request(make_corpus: Make) -> None:
    module, masked = loaders(make_corpus()), loaders(make_corpus(document_masking=True))
    batch, separated = next(iter(module.train_dataloader())), next(iter(masked.train_dataloader()))
    assert batch.tokens.shape == (4, 32)
    assert batch.tokens.dtype == separated.segments.dtype == torch.int64
    assert batch.scored.all()
    assert batch.segments is None
    assert torch.equal(batch.tokens, separated.tokens)
    ends = (separated.tokens[:, :-1] == module.corpus.vocabulary.eos_id).long().cumsum(1)
    assert torch.equal(separated.segments[:, 1:], ends)
    assert not separated.segments[:, 0].any()


def test_workers_deliver_the_same_batches(make_corpus: Make) -> None:
    alone, helped = loaders(make_corpus()), loaders(make_corpus(), replace(PLAN, num_workers=2))
    for left, right in zip(alone.train_dataloader(), helped.train_dataloader(), strict=True):
        assert torch.equal(left.tokens, right.tokens)


def test_validation_covers_every_sequence_in_order(make_corpus: Make) -> None:
    corpus = make_corpus()
    tokens = torch.cat([batch.tokens for batch in loaders(corpus).val_dataloader()])
    assert torch.equal(tokens.int(), torch.from_numpy(corpus.val_sequences.tokens(range(len(corpus.val_sequences)))))


def test_padding_is_never_scored(make_corpus: Make) -> None:
    batch = SequenceDataset(make_corpus().val_sequences, document_masking=True)[PADDING]
    assert batch.tokens.shape == batch.segments.shape == (1, 32)
    assert not batch.scored.any()


def test_vocabulary_and_text_go_with_the_tokenizer(make_corpus: Make) -> None:
    corpus = make_corpus(tokenizer=BPE(300))
    vocabulary = corpus.vocabulary
    assert (vocabulary.size, vocabulary.mask_id, vocabulary.bos_id, vocabulary.eos_id) == (300, 299, 298, 298)
    assert corpus.decode([*corpus.encode("light"), vocabulary.mask_id]) == "light[MASK]"
    assert corpus.num_train_tokens == corpus.statistics["train"].tokens
    assert corpus.entropy_per_token is None


def test_batches_move_to_devices(make_corpus: Make) -> None:
    module = loaders(make_corpus(document_masking=True))
    moved = module.transfer_batch_to_device(next(iter(module.train_dataloader())), torch.device("meta"), 0)
    assert {moved.tokens.device.type, moved.scored.device.type, moved.segments.device.type} == {"meta"}


def test_prepare_may_be_repeated_and_comes_first(make_corpus: Make, text_file: Path, tmp_path: Path) -> None:
    corpus = make_corpus()
    before = corpus.train_sequences.tokens([0]).tolist()
    module = loaders(corpus)
    module.prepare_data()
    module.setup("fit")
    assert corpus.train_sequences.tokens([0]).tolist() == before
    unprepared = TextCorpus(Text(str(text_file), "\n\n"), corpus.tokenizer, 8, cache_dir=str(tmp_path / "new"))
    with pytest.raises(AssertionError, match="prepare"):
        len(unprepared.train_sequences)
    loaders(unprepared).setup("fit")
    assert len(unprepared.train_sequences) > 0


def test_a_loaded_tokenizer_evaluates_all_of_another_corpus(make_corpus: Make, tmp_path: Path) -> None:
    trained = make_corpus(tokenizer=BPE(300))
    trained.tokenizer.save(tmp_path / "run")
    (tmp_path / "other.txt").write_text("\n\n".join(make_documents(20, seed=1)))
    other = Text(str(tmp_path / "other.txt"), "\n\n")
    corpus = make_corpus(source=other, tokenizer=load_tokenizer(tmp_path / "run"), val_fraction=1)
    module = loaders(corpus)
    assert corpus.tokenizer.fingerprint == trained.tokenizer.fingerprint
    assert corpus.statistics["val"].documents == 20
    assert sum(len(batch) for batch in module.val_dataloader()) == corpus.statistics["val"].sequences
    with pytest.raises(ValueError, match="nothing to train on"):
        module.train_dataloader()
