"""optimizer=adamw_8bit: follows AdamW with a quarter of its states, and is killed and resumed without a difference."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from dlmkit.training.adamw_8bit import adamw_8bit
from dlmkit.training.parameter_groups import parameter_groups
from toy_runs import checkpoint, curve, same_end, stop_at, train, trained

WIDE = "backbone.config={model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 64, n_positions: 16}"
WORD = "optimizer=adamw_8bit"
SETTINGS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


@pytest.fixture
def torchao() -> None:
    pytest.importorskip("torchao", reason="the extra `quantized` is not installed")


def stepped(make: Callable[..., Optimizer], steps: int = 20) -> tuple[list[Tensor], Optimizer]:
    """A matrix whose moments are packed, one that is too small for it, and a vector, after steps of a noisy square."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((64, 128), (8, 8), (32,))]
    optimizer = make(parameter_groups(parameters), **SETTINGS)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = parameter.detach() + 0.1 * torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach() for parameter in parameters], optimizer


def test_it_follows_adamw(torchao: None) -> None:
    """Where moments stay as they are to rounding, and else within 3% of the way that weights went."""
    start, _ = stepped(torch.optim.AdamW, steps=0)
    exact, _ = stepped(torch.optim.AdamW)
    packed, _ = stepped(adamw_8bit)
    torch.testing.assert_close(packed[1:], exact[1:], rtol=1e-5, atol=1e-6)
    way = (exact[0] - start[0]).norm()
    assert 0 < (packed[0] - exact[0]).norm() < 0.03 * way


def test_matrices_decay_and_vectors_do_not(torchao: None) -> None:
    matrix, vector = nn.Parameter(torch.ones(64, 64)), nn.Parameter(torch.ones(64))
    optimizer = adamw_8bit(parameter_groups([matrix, vector]), **SETTINGS)
    matrix.grad, vector.grad = torch.zeros_like(matrix), torch.zeros_like(vector)
    optimizer.step()
    torch.testing.assert_close(matrix.detach(), torch.full((64, 64), 1 - 1e-2 * 0.1))
    assert bool((vector == 1).all())


def test_states_take_a_quarter(torchao: None) -> None:
    """In memory, table included, and in a checkpoint: a byte and a 64th for each moment of a packed weight."""
    (weight, *_), optimizer = stepped(adamw_8bit)
    state = next(iter(optimizer.state.values()))
    inner = [getattr(state[name], part) for name in ("exp_avg", "exp_avg_sq") for part in ("codes", "scale")]
    assert sum(one.nbytes for one in inner) == 2 * weight.numel() * (1 + 4 / 256)
    tables = {value.qmap.data_ptr(): value.qmap.nbytes for value in (state["exp_avg"], state["exp_avg_sq"])}
    assert sum(tables.values()) == 2 * 1024  # once for all weights
    saved = [leaf for leaf in tree_leaves(optimizer.state_dict()["state"][0]) if leaf.ndim]
    assert sum(leaf.nbytes for leaf in saved) == 2 * weight.numel() * (1 + 4 / 256)
    assert {type(leaf) for leaf in saved} == {Tensor}


def test_a_state_is_restored_to_the_bit(torchao: None) -> None:
    torch.manual_seed(0)
    one, other = (nn.Parameter(torch.ones(64, 64)) for _ in range(2))
    first, second = (adamw_8bit([{"params": [weight]}], **SETTINGS) for weight in (one, other))
    for step in range(4):
        if step == 2:
            other.data.copy_(one)
            second.load_state_dict(copy.deepcopy(first.state_dict()))
        gradient = torch.randn(64, 64)
        for weight, optimizer in ((one, first), (other, second)):
            weight.grad = gradient.clone()
            optimizer.step()
    assert bool((one == other).all())


def test_training_follows_and_a_killed_run_resumes(torchao: None, folder: Path) -> None:
    """Losses of 10 steps are those of AdamW to 0.002 nats; a run that was stopped and went on ends to the bit alike."""
    losses = {}
    for word in ("optimizer=adamw", WORD):
        run = trained(word.partition("=")[2], WIDE, word, steps=10)
        losses[word] = torch.tensor([value for _, value in curve(run, "train/loss")])
    difference = (losses[WORD] - losses["optimizer=adamw"]).abs()
    assert 0 < float(difference.max()) < 0.002
    assert train("parts", WIDE, WORD, stop_at(5), steps=10).code == 130
    resumed = trained("parts", WIDE, WORD, "if_exists=resume", steps=10)
    assert same_end(Path("adamw_8bit"), resumed)
    moments = [state["exp_avg"] for state in checkpoint(resumed)["optimizer_states"][0]["state"].values()]
    assert any(isinstance(moment, dict) and moment["codes"].dtype == torch.uint8 for moment in moments)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.precision=64-true"], "computes in float32"),
        (["strategy=fsdp2", "trainer.accelerator=cpu"], "optimizer=adamw_8bit packs numbers in blocks"),
        (["optimizer.fused=true"], "optimizer.fused"),
    ],
)
def test_what_cannot_work_is_refused(torchao: None, folder: Path, overrides: list[str], message: str) -> None:
    outcome = train("run", WORD, *overrides)
    assert outcome.code == 2, outcome.err
    assert message in outcome.line
    assert not Path("run").exists()


def test_it_takes_weights_of_bf16(torchao: None, folder: Path) -> None:
    run = trained("bf16", WIDE, WORD, "trainer.precision=bf16-true", steps=2)
    assert len(curve(run, "train/loss")) == 2
    assert checkpoint(run)["state_dict"]["backbone.model.lm_head.weight"].dtype == torch.bfloat16


def test_without_the_extra_a_line_says_how_to_get_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim", None)  # as an import finds what is not installed
    monkeypatch.setitem(sys.modules, "torchao", None)
    outcome = train("run", WORD)
    assert outcome.code == 2
    assert outcome.line.endswith("optimizer=adamw_8bit needs the package torchao: pip install 'dlmkit[quantized]'")
    assert not Path("run").exists()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path
