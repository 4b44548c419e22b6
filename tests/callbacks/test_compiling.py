"""Compiled layers compute what plain ones do, keep their names, and fall back where they may."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch

from dlmkit.backbones.base import Backbone
from dlmkit.callbacks.compiling import compile_layers
from dlmkit.step import losses
from dlmkit.types import Noised
from laws import parts
from networks import MASK, WITH_COMPILER, V, network, some_tokens
from toy_runs import curve, trained, weights

B, L = 4, 8


def step(backbone: Backbone) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss of a step, and its gradients."""
    x_0 = some_tokens(B, L)
    x_t = x_0.masked_fill(torch.rand(B, L, generator=torch.Generator().manual_seed(0)) < 0.5, MASK)
    t = torch.full((B,), 0.5, dtype=torch.float64)
    noised = Noised(x_0, x_t, t, torch.ones_like(x_0, dtype=torch.bool), torch.ones_like(t))
    noise = parts.process("absorbing", vocab_size=V, mask_id=MASK)
    loss = losses(parts.objective("masked"), noise, backbone, noised).loss.sum()
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    return loss.detach(), list(torch.autograd.grad(loss, trained, allow_unused=True))


@pytest.mark.parametrize(
    ("family", "backend"),
    [
        *((family, "aot_eager") for family in ("gpt2", "llama", "dit")),  # all but the machine code, which takes longer
        pytest.param("gpt2", "inductor", marks=WITH_COMPILER),
    ],
)
def test_a_compiled_step_is_the_plain_step(family: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    plain = network(family)
    compiled = copy.deepcopy(plain)
    compile_layers(compiled.sharding_units(), fall_back=False)
    torch.testing.assert_close(step(compiled), step(plain), rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "equal layers are compiled once"
    assert compiled.state_dict().keys() == plain.state_dict().keys()


def test_a_compiled_run_saves_what_a_plain_run_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and, up to rounding, values."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, compiled = (trained(str(tmp_path / mode), f"compile={mode}") for mode in ("false", "true"))
    torch.testing.assert_close(weights(compiled), weights(plain), rtol=1e-4, atol=1e-5)
    assert dict(curve(compiled, "val/nll")) == pytest.approx(dict(curve(plain, "val/nll")), rel=1e-4)


def test_where_it_fails_layers_run_as_they_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """With no compiler: one line, and the same step."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda call: torch._dynamo.optimize(no_compiler)(call))
    plain = network("gpt2")
    unlucky = copy.deepcopy(plain)
    compile_layers(unlucky.sharding_units(), fall_back=True)
    torch.testing.assert_close(step(unlucky), step(plain), rtol=0, atol=0)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dlmkit: layers run as they are, since torch.compile failed (")
    strict = copy.deepcopy(plain)
    compile_layers(strict.sharding_units(), fall_back=False)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed):
        step(strict)


def no_compiler(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> None:
    raise RuntimeError("no C++ compiler")
