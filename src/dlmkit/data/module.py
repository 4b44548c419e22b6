"""The one Lightning data module: the batches of a corpus, in an order that survives resuming and re-sharding."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Sampler

from dlmkit.data.corpora.base import Corpus
from dlmkit.data.order import BatchPlan, TrainOrder, ValidationOrder
from dlmkit.data.sequences import SequenceDataset, Sequences
from dlmkit.ranks import shard_of
from dlmkit.types import Batch


class CorpusDataModule(LightningDataModule):
    """Loaders over the sequences of a corpus; the trainer is run with ``use_distributed_sampler=False``.

    After ``prepare_data()`` and ``setup("fit")`` the loaders can be used with or without a trainer.

    Args:
        corpus: what the text is.
        plan: how the run divides it into batches.
    """

    def __init__(self, corpus: Corpus, plan: BatchPlan) -> None:
        super().__init__()
        self.corpus = corpus
        self.plan = plan

    def prepare_data(self) -> None:
        """Fill the cache; Lightning calls this on one rank of each node."""
        self.corpus.prepare()

    def setup(self, stage: str) -> None:
        """Read the cache; Lightning calls this on every rank, after :meth:`prepare_data`."""
        self.corpus.prepare()

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the training batches of the whole run, from the trainer's optimizer step on.

        Raises:
            ValueError: the corpus has no training sequences.
        """
        sequences = self.corpus.train_sequences
        if not len(sequences):
            raise ValueError(
                "the corpus has nothing to train on, since val_fraction = 1: use a smaller one, for example 0.05"
            )
        start_step = 0 if self.trainer is None else self.trainer.global_step
        return self._loader(sequences, TrainOrder(len(sequences), self.plan, *shard_of(self.trainer), start_step))

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the validation batches of this rank."""
        sequences = self.corpus.val_sequences
        order = ValidationOrder(len(sequences), self.plan.micro_batch_size, *shard_of(self.trainer))
        return self._loader(sequences, order)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Return the batch on `device`."""
        return batch.to(device)

    def _loader(self, sequences: Sequences, order: Sampler[list[int]]) -> DataLoader[Batch]:
        dataset = SequenceDataset(sequences, self.corpus.document_masking)
        return DataLoader(
            dataset,
            batch_sampler=order,
            num_workers=self.plan.num_workers,
            collate_fn=_already_a_batch,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )


def _already_a_batch(batch: Any) -> Any:  # DataLoader's type expects a list of items here
    return batch
