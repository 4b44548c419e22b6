"""An objective from outside the package that holds a frozen network, a trainable scalar and a counter.

One file and one YAML in a folder given by --config-dir, as docs/extending.md shows.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dlmkit.checkpoints.load import load
from toy_runs import MODEL, SMALL, TOKENS, TOY, checkpoint, curve, dlmkit, stop_at, summary, text_corpus, text_data

CODE = '''
"""Distillation from a frozen network, with a learned weight."""

import torch
import torch.nn.functional as F
from torch import nn

from dlmkit.backbones.dit import DiT
from dlmkit.objectives.masked import MaskedElbo
from dlmkit.tensors import scatter
from dlmkit.types import NetworkInput, TokenLoss


class Teacher(nn.Module):
    """A network that is not trained."""

    def __init__(self, vocab_size, mask_id):
        super().__init__()
        self.backbone = DiT(vocab_size, mask_id, 64, 16, 1, 2, 8).requires_grad_(False)


class Distilled(nn.Module, MaskedElbo):
    """loss = masked + exp(-s) * cross-entropy to the teacher at masked positions + s, with s learned; nll as masked."""

    name = "distilled"

    def __init__(self, vocab_size, mask_id):
        nn.Module.__init__(self)
        MaskedElbo.__init__(self)
        self.teacher = Teacher(vocab_size, mask_id)
        self.log_weight = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("num_masked", torch.zeros((), dtype=torch.float64))

    def __call__(self, prediction, noised, process):
        bound = MaskedElbo.__call__(self, prediction, noised, process)
        where = (noised.x_t != noised.x_0) & noised.scored
        with torch.no_grad():
            target = self.teacher.backbone(NetworkInput(noised.x_t, noised.t)).logits(where).softmax(-1)
        log_p = prediction.logits(where).log_softmax(-1)
        kept = target > 0  # not the mask
        entropy = -(target * log_p.masked_fill(~kept, 0.0)).sum(-1)
        extra = scatter((-self.log_weight).exp() * entropy + self.log_weight, where)
        return TokenLoss(loss=bound.loss + extra, nll=bound.nll)

    def collect(self, output):
        masked = (output.noised.x_t != output.noised.x_0) & output.noised.scored
        return masked.sum().double().cpu()[None]

    def update(self, totals):
        self.num_masked += totals[0].to(self.num_masked.device)
'''
YAML = """
_target_: my_parts.Distilled
vocab_size: ${vocab.size}
mask_id: ${vocab.mask_id}
"""
CHOSEN = ["--config-dir", "my_conf", "objective=distilled", "family=absorbing", "optimizer.lr=1e-2"]
SPLIT = (
    "{_target_: lightning.pytorch.strategies.ModelParallelStrategy, data_parallel_size: 2, tensor_parallel_size: 1,"
    " save_distributed_checkpoint: false}"
)
TRUST = ["--trust", "my_parts"]
RANKS = {"ddp": "ddp", "sharded": SPLIT}


@pytest.fixture(autouse=True)
def plug_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The class and its YAML, importable here and in the processes that a run starts."""
    (folder / "my_parts.py").write_text(CODE)
    (folder / "my_conf" / "objective").mkdir(parents=True)
    (folder / "my_conf" / "objective" / "distilled.yaml").write_text(YAML)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    return folder


def trained(run_dir: str, *overrides: str, steps: int = 4) -> Path:
    """Train a toy in this process, without fail."""
    outcome = dlmkit("train", *TOY, *CHOSEN, f"hydra.run.dir={run_dir}", f"budget.tokens={steps * TOKENS}", *overrides)
    assert outcome.code == 0, outcome.err
    return Path(run_dir)


def state(run_dir: Path) -> dict[str, Any]:
    """What the checkpoint holds of the objective, by name."""
    saved = checkpoint(run_dir)["state_dict"].items()
    return {key.removeprefix("objective."): value for key, value in saved if key.startswith("objective.")}


def test_what_is_trained_counted_and_saved() -> None:
    before, run = state(trained("short", steps=1)), trained("run", steps=4)
    after = state(run)
    teacher = {key for key in after if key.startswith("teacher.backbone.")}
    assert set(after) == {*teacher, "log_weight", "num_masked"}
    assert len(teacher) > 10
    for key in teacher:
        assert torch.equal(after[key], before[key]), key
    assert not torch.equal(after["log_weight"], before["log_weight"])
    assert float(before["log_weight"]) != 0.5
    assert 0 < before["num_masked"] < after["num_masked"] < 4 * TOKENS
    groups = checkpoint(run)["optimizer_states"][0]["param_groups"]
    network = [parameter for parameter in load(run, trust=(TRUST[1],)).backbone.parameters() if parameter.requires_grad]
    assert sum(len(group["params"]) for group in groups) == len(network) + 1  # and the scalar; not the teacher


def test_a_run_that_stopped_and_went_on_ends_bit_for_bit_as_one_that_did_not() -> None:
    whole = trained("whole")
    stopped = dlmkit("train", *TOY, *CHOSEN, "hydra.run.dir=parts", f"budget.tokens={4 * TOKENS}", stop_at(3))
    assert stopped.code == 130
    parts = trained("parts", "if_exists=resume")
    for key in ("state_dict", "optimizer_states", "parts"):
        torch.testing.assert_close(checkpoint(parts)[key], checkpoint(whole)[key], rtol=0, atol=0)
    assert curve(parts, "train/loss") == curve(whole, "train/loss")
    assert summary(parts)["val_nll"] == summary(whole)["val_nll"]


@pytest.mark.long
def test_the_same_command_starts_from_the_same_teacher() -> None:
    for key, value in state(trained("one", steps=1)).items():
        assert torch.equal(value, state(trained("two", "if_exists=overwrite", steps=1))[key]), key


@pytest.mark.parametrize("ranks", [pytest.param("ddp", marks=pytest.mark.long), "sharded"])
def test_two_ranks_train_as_one(ranks: str) -> None:
    options = [f"trainer.strategy={RANKS[ranks]}", "trainer.devices=2"]
    for name, more in (("one", []), ("two", options)):
        run = [*TOY, *CHOSEN, f"budget.tokens={3 * TOKENS}", "trainer.accelerator=cpu", f"hydra.run.dir={name}", *more]
        command = [sys.executable, "-m", "dlmkit.cli", "train", *run]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    one, two = Path("one"), Path("two")
    torch.testing.assert_close(checkpoint(two)["state_dict"], checkpoint(one)["state_dict"], rtol=1e-3, atol=1e-4)
    assert state(two)["num_masked"] == state(one)["num_masked"]
    assert float(state(two)["log_weight"]) != 0.5
    assert summary(two)["val_nll"] == pytest.approx(summary(one)["val_nll"], rel=1e-5)
    for (_, norm), (_, expected) in zip(curve(two, "train/grad_norm"), curve(one, "train/grad_norm"), strict=True):
        assert norm == pytest.approx(expected, rel=1e-4)


def test_a_loaded_model_has_the_objectives_state() -> None:
    run = trained("run")
    objective = load(run, trust=(TRUST[1],)).objective
    assert torch.equal(objective.log_weight, state(run)["log_weight"])
    assert torch.equal(objective.num_masked, state(run)["num_masked"])
    teacher = objective.teacher.backbone.state_dict()
    assert all(torch.equal(value, state(run)[f"teacher.backbone.{key}"]) for key, value in teacher.items())


def test_samples_and_exports_are_of_the_network_alone() -> None:
    text = text_data(text_corpus(Path("text.txt")))
    run = [*MODEL, *SMALL, *text, *CHOSEN, f"budget.tokens={2 * TOKENS}", "hydra.run.dir=run"]
    outcome = dlmkit("train", *run)
    assert outcome.code == 0, outcome.err
    assert dlmkit("export", "run", "out", *TRUST).code == 0
    settings = ["--length", "8", "--steps", "2", "--json", *TRUST]
    samples = [dlmkit("sample", place, *settings) for place in ("run", "out")]
    assert samples[0].code == samples[1].code == 0, samples[1].err
    assert json.loads(samples[0].out)["texts"] == json.loads(samples[1].out)["texts"]
    size = sum(parameter.numel() for parameter in load("run", trust=(TRUST[1],)).backbone.parameters())
    exported = Path("out/model.safetensors").stat().st_size
    assert exported < 4 * size + 10_000  # float32, and the file's header
    assert not [path for path in Path("out").iterdir() if b"teacher" in path.read_bytes()]
    shutil.rmtree("run")
    assert dlmkit("sample", "out", *settings).code == 0
