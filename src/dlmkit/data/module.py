"""What all data modules share: from blocks to loaders, in an order that survives resuming and re-sharding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Sampler

from dlmkit.data.blocks import BlockDataset, Blocks
from dlmkit.data.order import TrainOrder, ValidationOrder
from dlmkit.data.tokenizers.base import Tokenizer
from dlmkit.data.vocabulary import Vocabulary
from dlmkit.ranks import shard_of
from dlmkit.types import Batch


class BlockDataModule(LightningDataModule, ABC):
    """Loaders over fixed blocks; the trainer is run with ``use_distributed_sampler=False``.

    After ``prepare_data()`` and ``setup("fit")`` everything below can be asked for, with or without a trainer.

    Args:
        length: L, tokens per block.
        micro_batch_size: blocks per micro-step and rank.
        accumulate: micro-steps per optimizer step.
        num_steps: optimizer steps of the whole run.
        keep_documents_apart: whether batches carry segments, so that attention may stop at the end of a document.
        seed: of the order of the blocks.
        num_workers: processes that make batches; 0 is fast enough, since a batch is one read of a memory map.
    """

    def __init__(
        self,
        length: int,
        micro_batch_size: int,
        accumulate: int,
        num_steps: int,
        keep_documents_apart: bool,
        seed: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("length", length, 1),
            ("micro_batch_size", micro_batch_size, 1),
            ("accumulate", accumulate, 1),
            ("num_steps", num_steps, 1),
            ("seed", seed, 0),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise ValueError(f"{name} = {value} must be at least {least}: set {name} to {least} or more")
        self.length = length
        self.micro_batch_size = micro_batch_size
        self.accumulate = accumulate
        self.num_steps = num_steps
        self.keep_documents_apart = keep_documents_apart
        self.seed = seed
        self.num_workers = num_workers

    @property
    @abstractmethod
    def train_blocks(self) -> Blocks:
        """The training blocks."""

    @property
    @abstractmethod
    def val_blocks(self) -> Blocks:
        """The validation blocks."""

    @property
    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """The size and the special ids that the network is built from."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """16 hex digits; equal data, equal fingerprint. The order of the blocks is not part of it."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, where there is text."""
        return None

    @property
    def val_bytes(self) -> int | None:
        """UTF-8 bytes of the text in the validation blocks; bits per byte = nats per token * tokens / bytes / ln 2."""
        return None

    @property
    def entropy_per_token(self) -> float | None:
        """Exact entropy of the source in nats per token, where it is known: no model's mean NLL is lower."""
        return None

    @property
    def num_train_tokens(self) -> int:
        """Number of tokens in the training blocks."""
        return len(self.train_blocks) * self.length

    @property
    def num_val_tokens(self) -> int:
        """Number of tokens in the validation blocks."""
        return len(self.val_blocks) * self.length

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the training batches of the whole run, beginning at the trainer's optimizer step."""
        if not len(self.train_blocks):
            raise ValueError(
                "there is nothing to train on, since val_fraction = 1: use a smaller one, for example 0.05"
            )
        rank, world_size = shard_of(self.trainer)
        order = TrainOrder(
            num_blocks=len(self.train_blocks),
            micro_batch_size=self.micro_batch_size,
            accumulate=self.accumulate,
            num_steps=self.num_steps,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            start_step=0 if self.trainer is None else self.trainer.global_step,
        )
        return self._loader(self.train_blocks, order)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return this rank's share of the validation blocks."""
        rank, world_size = shard_of(self.trainer)
        return self._loader(
            self.val_blocks, ValidationOrder(len(self.val_blocks), self.micro_batch_size, rank, world_size)
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Return the batch on `device`."""
        return batch.to(device)

    def _loader(self, blocks: Blocks, order: Sampler[list[int]]) -> DataLoader[Batch]:
        dataset = BlockDataset(blocks, self.keep_documents_apart)
        return DataLoader(dataset, batch_sampler=order, num_workers=self.num_workers, collate_fn=_already_a_batch)


def _already_a_batch(batch: Any) -> Any:  # DataLoader's type expects a list of items here
    return batch
