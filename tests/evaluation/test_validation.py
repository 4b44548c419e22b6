"""The validation of a module: every sequence is scored at the times and with the noise of its own index."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from dlmkit.build import build_module
from dlmkit.config import compose
from dlmkit.evaluation.nelbo import score_sequences
from dlmkit.types import Batch
from toy_runs import MODEL


def test_a_sequence_without_scored_tokens_keeps_its_index(tmp_path):
    config = compose([*MODEL, "length=8", "num_steps=20"], tmp_path)
    config.vocab = {"size": 16, "mask_id": 15, "bos_id": 14, "eos_id": 14}
    module = build_module(config, bytes_per_token=None)
    tokens = torch.randint(14, (3, 8), generator=torch.Generator().manual_seed(0))
    scored = torch.ones_like(tokens, dtype=torch.bool)
    scored[0] = False
    loader = DataLoader([Batch(tokens[i : i + 1], scored[i : i + 1]) for i in range(3)], batch_size=None)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    (logged,) = trainer.validate(module, loader, verbose=False)
    with torch.no_grad():
        whole = score_sequences(
            module.objective,
            module.process,
            module.backbone,
            Batch(tokens, scored),
            torch.arange(3),
            module.num_val_times,
        )
    assert logged["val/nll"] == pytest.approx(float(whole.nll.sum()) / 16, rel=1e-6)
