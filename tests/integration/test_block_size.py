"""A callback from outside the package that changes the block size of block diffusion during a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from dlmkit.checkpoints.load import load
from toy_runs import MODEL, SMALL, TOKENS, Outcome, checkpoint, curve, dlmkit, stop_at, summary, text_corpus, text_data

CODE = '''
"""A block size that grows."""

import lightning.pytorch as pl


class BlockGrowth(pl.Callback):
    """Doubles the block size when training reaches `step`."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            pl_module.block_size = 4
'''
GROWTH = "+callbacks.growth={_target_: my_callbacks.BlockGrowth, step: 3}"
STEPS = 6  # saved and validated after 2, 4 and 6


@pytest.fixture(autouse=True)
def plug_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "my_callbacks.py").write_text(CODE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "my_callbacks", raising=False)


def train(run_dir: str, *overrides: str) -> Outcome:
    text = text_data(text_corpus(Path("text.txt")))
    blocks = ["family=block", "objective.block_size=2"]
    blocks += ["callbacks.samples.every_steps=2", "callbacks.checkpoint.save_top_k=-1"]
    budget = f"budget.tokens={STEPS * TOKENS}"
    return dlmkit("train", *MODEL, *SMALL, *text, *blocks, budget, f"hydra.run.dir={run_dir}", *overrides)


def trained(run_dir: str, *overrides: str) -> Path:
    outcome = train(run_dir, *overrides)
    assert outcome.code == 0, outcome.err
    return Path(run_dir)


def saved_block_size(run: Path, name: str) -> int:
    return checkpoint(run, name)["settings"]["block_size"]


def test_samples_and_checkpoints_follow() -> None:
    run = trained("run", GROWTH)
    assert [saved_block_size(run, name) for name in ("step=2.ckpt", "step=4.ckpt", "last.ckpt")] == [2, 4, 4]
    # Two steps were requested, of which each of the 8 / 2 or 8 / 4 blocks takes at least one.
    records = [json.loads((run / "samples" / f"step_{step:07d}.json").read_text()) for step in (2, 4, 6)]
    assert [record["num_steps"] for record in records] == [4, 2, 2]
    for name, block_size in (("step=2.ckpt", 2), ("step=4.ckpt", 4), ("last.ckpt", 4)):
        model = load(run / "checkpoints" / name)
        assert (model.objective.block_size, model.sampler.block_size) == (block_size, block_size)
    assert load(run).sampler.block_size == 4


def test_record_and_configuration_follow() -> None:
    run = trained("run", GROWTH)
    config = OmegaConf.load(run / "config.yaml")
    assert (config.objective.block_size, config.sampler.block_size, summary(run)["block_size"]) == (4, 4, 4)
    plain = trained("plain")
    config = OmegaConf.load(plain / "config.yaml")
    assert (config.objective.block_size, config.sampler.block_size, summary(plain)["block_size"]) == (2, 2, 2)


def test_the_sample_command_uses_the_block_size_of_the_checkpoint() -> None:
    """The texts are those of the same weights sampled with that block size, which differ from those of the other."""
    run = trained("run", GROWTH)
    for name, block_size in (("step=2.ckpt", 2), ("last.ckpt", 4)):
        file = run / "checkpoints" / name
        outcome = dlmkit("sample", str(file), "--length", "8", "--steps", "8", "--num-samples", "4", "--json")
        assert outcome.code == 0, outcome.err
        texts = json.loads(outcome.out)["texts"]
        model = load(file)
        requests = model.make_requests(num_samples=4, length=8)
        by_size = {
            size: model.texts(requests, model.complete(requests, 8, model.sampler.with_settings(block_size=size))).texts
            for size in (2, 4)
        }
        assert texts == by_size[block_size]
        assert by_size[2] != by_size[4]


def test_the_block_size_matters_to_training() -> None:
    """Otherwise the next test could not fail."""
    plain, grown = trained("plain"), trained("grown", GROWTH)
    assert curve(plain, "train/loss")[:3] == curve(grown, "train/loss")[:3]
    assert curve(plain, "train/loss")[3:] != curve(grown, "train/loss")[3:]


def test_a_resumed_run_keeps_it() -> None:
    """The callback changes it once, before the checkpoint that the run goes on from."""
    whole = trained("whole", GROWTH)
    assert train("parts", GROWTH, stop_at(5)).code == 130
    parts = trained("parts", GROWTH, "if_exists=resume")
    torch.testing.assert_close(checkpoint(parts)["state_dict"], checkpoint(whole)["state_dict"], rtol=0, atol=0)
    assert curve(parts, "train/loss") == curve(whole, "train/loss")
    assert summary(parts)["val_nll"] == summary(whole)["val_nll"]
    assert saved_block_size(parts, "last.ckpt") == 4


def test_a_block_size_that_does_not_divide_the_length_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("my_callbacks.py").write_text(CODE.replace("= 4", "= 3"))
    with pytest.raises(ValueError, match=r"length 8 is no multiple of objective\.block_size 3"):
        train("run", "--debug", GROWTH)
