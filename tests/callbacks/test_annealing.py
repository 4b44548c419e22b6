"""Attention annealing: the network's attention at each step of a real run, in validation and in generation."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest

import toy_runs
from dlmkit.backbones.base import Backbone
from dlmkit.callbacks.annealing import AttentionAnnealing
from dlmkit.types import Attention, NetworkInput
from toy_runs import curve, summary, train, trained

CALLS: list[tuple[str, Attention]] = []


class Watch(pl.Callback):
    """Records the attention of every call of the network; in eval mode it validates or generates."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        def record(backbone: Backbone, arguments: tuple[NetworkInput]) -> None:
            CALLS.append(("train" if backbone.training else "eval", arguments[0].attention))

        if stage == "fit":
            pl_module.backbone.register_forward_pre_hook(record)


def test_ratio():
    annealing = AttentionAnnealing(anneal_steps=4, shape="bernoulli", seed=0)
    assert [annealing.ratio(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert AttentionAnnealing(anneal_steps=1, shape="blocks", seed=0).ratio(0) == 1.0
    assert AttentionAnnealing(anneal_steps=4, shape="none", seed=0).ratio(0) == 1.0
    with pytest.raises(ValueError, match="bernoulli, blocks, none"):
        AttentionAnnealing(anneal_steps=4, shape="rows", seed=0)
    with pytest.raises(ValueError, match=r"anneal_steps 0 is outside \[1, "):
        AttentionAnnealing(anneal_steps=0, shape="bernoulli", seed=0)


def test_attention_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(toy_runs, "Watch", Watch, raising=False)
    CALLS.clear()
    options = ["callbacks=[annealing,samples,checkpoint]", "callbacks.annealing.anneal_steps=4", "batch.accumulate=2"]
    run = trained("run", *options, "+callbacks.watch={_target_: toy_runs.Watch}", steps=5)

    steps = [attention for mode, attention in CALLS if mode == "train"]
    assert [attention.ratio for attention in steps] == [r for r in (0.25, 0.5, 0.75, 1.0, 1.0) for _ in range(2)]
    draws = [attention.seed for attention in steps]
    assert draws[0::2] == draws[1::2]  # both micro-batches of a step share one draw
    assert len(set(draws)) == 5
    assert {attention.ratio for mode, attention in CALLS if mode == "eval"} == {1.0}
    assert [ratio for _, ratio in curve(run, "attention_ratio")] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_an_annealed_run_resumes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["callbacks=[annealing,samples,checkpoint]", "callbacks.annealing.anneal_steps=10"]
    whole = trained("whole", *options, steps=5)
    assert train("parts", *options, toy_runs.stop_at(3), steps=5).code == 130
    parts = trained("parts", *options, "if_exists=resume", steps=5)
    assert summary(parts)["val_nll"] == summary(whole)["val_nll"]
    assert curve(parts, "train/loss") == curve(whole, "train/loss")
