"""The data module hands Lightning the batches that it promises, also after a resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from data_helpers import make_documents
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from dlmkit.data.blocks import PADDING, BlockDataset
from dlmkit.data.sources.text import Text
from dlmkit.data.text import TextDataModule
from dlmkit.data.tokenizers import load_tokenizer
from dlmkit.data.tokenizers.bpe import BPE
from dlmkit.types import Batch

Make = Callable[..., TextDataModule]


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


def fit(folder: Path, module: TextDataModule, steps: int, checkpoint: Path | None = None) -> Recorder:
    recorder = Recorder()
    saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = Trainer(
        max_steps=steps,
        accumulate_grad_batches=module.accumulate,
        accelerator="cpu",
        use_distributed_sampler=False,
        logger=False,
        callbacks=[saver],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=module.accumulate * 5,
        check_val_every_n_epoch=None,
    )
    trainer.fit(recorder, module, ckpt_path=checkpoint, weights_only=False)
    assert trainer.global_step == steps
    return recorder


def test_lightning_run_sees_the_stream_and_a_resumed_one_its_tail(make_module: Make, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", make_module(), 5)
    promised = [batch.tokens.flatten().tolist() for batch in make_module().train_dataloader()]
    assert whole.seen == promised
    assert len(promised) == 10
    resumed = fit(tmp_path / "resumed", make_module(), 5, tmp_path / "whole" / "step=3.ckpt")
    assert resumed.seen == promised[6:]
    assert whole.validated == resumed.validated == make_module().num_val_tokens


def test_batches_are_int64_scored_everywhere_with_segments_on_request(make_module: Make) -> None:
    module, apart = make_module(), make_module(keep_documents_apart=True)
    batch, separated = next(iter(module.train_dataloader())), next(iter(apart.train_dataloader()))
    assert batch.tokens.shape == (4, 32)
    assert batch.tokens.dtype == separated.segments.dtype == torch.int64
    assert batch.scored.all()
    assert batch.segments is None
    assert torch.equal(batch.tokens, separated.tokens)
    ends = (separated.tokens[:, :-1] == module.vocabulary.eos_id).long().cumsum(1)
    assert torch.equal(separated.segments[:, 1:], ends)
    assert not separated.segments[:, 0].any()


def test_workers_deliver_the_same_batches(make_module: Make) -> None:
    alone, helped = make_module(), make_module(num_workers=2)
    for left, right in zip(alone.train_dataloader(), helped.train_dataloader(), strict=True):
        assert torch.equal(left.tokens, right.tokens)


def test_validation_covers_every_block_in_order(make_module: Make) -> None:
    module = make_module()
    tokens = torch.cat([batch.tokens for batch in module.val_dataloader()])
    assert torch.equal(tokens.int(), torch.from_numpy(module.val_blocks.tokens(range(len(module.val_blocks)))))


def test_padding_is_never_scored(make_module: Make) -> None:
    batch = BlockDataset(make_module().val_blocks, keep_documents_apart=True)[PADDING]
    assert batch.tokens.shape == batch.segments.shape == (1, 32)
    assert not batch.scored.any()


def test_vocabulary_and_text_go_with_the_tokenizer(make_module: Make) -> None:
    module = make_module(tokenizer=BPE(300))
    vocabulary = module.vocabulary
    assert (vocabulary.size, vocabulary.mask_id, vocabulary.bos_id, vocabulary.eos_id) == (300, 299, 298, 298)
    assert module.decode([*module.encode("light"), vocabulary.mask_id]) == "light[MASK]"
    assert module.num_train_tokens == module.statistics["train"].tokens
    assert module.entropy_per_token is None


def test_batches_move_to_devices(make_module: Make) -> None:
    module = make_module(keep_documents_apart=True)
    moved = module.transfer_batch_to_device(next(iter(module.train_dataloader())), torch.device("meta"), 0)
    assert {moved.tokens.device.type, moved.scored.device.type, moved.segments.device.type} == {"meta"}


def test_prepare_and_setup_may_be_repeated_and_setup_needs_prepare(make_module: Make, tmp_path: Path) -> None:
    module = make_module()
    before = module.train_blocks.tokens([0]).tolist()
    module.prepare_data()
    module.setup("fit")
    assert module.train_blocks.tokens([0]).tolist() == before
    with pytest.raises(AssertionError, match="prepare_data"):
        TextDataModule(module._source, module.tokenizer, 8, 1, 1, 1, cache_dir=str(tmp_path / "new")).setup("fit")


def test_a_loaded_tokenizer_evaluates_all_of_another_corpus(make_module: Make, tmp_path: Path) -> None:
    trained = make_module(tokenizer=BPE(300))
    trained.tokenizer.save(tmp_path / "run")
    (tmp_path / "other.txt").write_text("\n\n".join(make_documents(20, seed=1)))
    other = Text(str(tmp_path / "other.txt"), "\n\n")
    module = make_module(source=other, tokenizer=load_tokenizer(tmp_path / "run"), val_fraction=1)
    assert module.tokenizer.fingerprint == trained.tokenizer.fingerprint
    assert module.statistics["val"].documents == 20
    assert sum(len(batch) for batch in module.val_dataloader()) == module.statistics["val"].blocks
    with pytest.raises(ValueError, match="nothing to train on"):
        module.train_dataloader()
