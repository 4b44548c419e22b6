"""Operations, parameters, states and suggestions of a plan, against what torch counts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from test_trace import LAYERS, B, L, V, job, network
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dlmkit.objectives.masked import MaskedElbo
from dlmkit.planning.devices import DEVICES, GIB, device_of
from dlmkit.planning.fake_step import nbytes
from dlmkit.planning.job import precision_of
from dlmkit.planning.memory import MemoryModel, optimizer_bytes
from dlmkit.planning.plan import Assumptions, count_parameters, make_plan
from dlmkit.planning.pretrained import shape_of
from dlmkit.planning.show import duration, show, size
from dlmkit.planning.speed import operations_of
from dlmkit.planning.suggest import suggest, ways
from dlmkit.training.adamw_8bit import adamw_8bit
from dlmkit.types import NetworkInput


def counted_flops(kind: str, recomputed: bool) -> int:
    """Operations of the trunk's forward and backward pass, with attention as the products that it is."""
    backbone = network(kind, causal=False, recomputed=recomputed).train()
    inputs = NetworkInput(torch.randint(V, (B, L)), torch.full((B,), 0.5, dtype=torch.float64))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        backbone(inputs).hidden.sum().backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "dit"])
def test_operations_are_those_that_torch_counts(kind: str) -> None:
    """To the last one, but for 6 a token for each weight of a vector, which multiplies nothing, and time's layers."""
    planned = job(kind)
    claimed = planned.backbone.flops_per_token(L, head_fraction=0.0)
    if kind == "dit":
        assert counted_flops(kind, False) / (B * L) == pytest.approx(claimed, rel=0.03)
        return
    tables = {"wte", "wpe", "embed_tokens", "lm_head"}
    vectors = sum(
        parameter.numel()
        for name, parameter in planned.backbone.named_parameters()
        if parameter.ndim == 1 and not tables & set(name.split("."))
    )
    assert counted_flops(kind, False) == (claimed - 6 * vectors) * B * L


def test_recomputed_operations_are_those_that_torch_counts() -> None:
    """torch leaves out each layer's last product, whose result nothing needs."""
    planned = job("llama")
    more = (counted_flops("llama", True) - counted_flops("llama", False)) / (B * L)
    claimed = operations_of(planned, checkpointing=True).recomputed
    last = LAYERS * 2 * 160 * 64
    assert more + last == pytest.approx(claimed, rel=0.01)
    assert operations_of(planned, checkpointing=False).recomputed == 0.0


def test_parameters() -> None:
    for kind, tables in (("gpt2", V * 64 + 64 * 64), ("llama", 2 * V * 64), ("dit", 2 * V * 64)):
        backbone = network(kind, causal=False, recomputed=False)
        counts = count_parameters(backbone)
        assert (counts.total, counts.frozen, counts.embeddings) == (backbone.num_params, 0, tables)
        next(backbone.parameters()).requires_grad_(False)
        assert count_parameters(backbone).frozen == next(backbone.parameters()).numel()


@pytest.mark.parametrize(
    ("optimizer", "states"),
    [
        (partial(torch.optim.AdamW, lr=1e-3), 8),
        (partial(torch.optim.SGD, lr=1e-3), 0),
        (partial(torch.optim.SGD, lr=1e-3, momentum=0.9), 4),
    ],
)
def test_states_are_those_of_a_real_optimizer(optimizer: partial[torch.optim.Optimizer], states: int) -> None:
    backbone = network("gpt2", causal=False, recomputed=False)
    made = optimizer(list(backbone.parameters()))
    for parameter in backbone.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    held = sum(
        value.numel() * value.element_size()
        for state in made.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.ndim
    )
    planned = replace(job("gpt2"), optimizer=optimizer)
    assert optimizer_bytes(planned, planned.backbone.parameters())[0] == held == states * backbone.num_params


def test_states_of_eight_bits_are_those_of_a_real_optimizer() -> None:
    """Small weights, and those that no blocks fill, keep theirs in float32."""
    pytest.importorskip("torchao", reason="the extra `quantized` is not installed")
    optimizer = partial(adamw_8bit, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    planned = replace(job("gpt2"), optimizer=optimizer)
    sizes = ((64, 64), (64, 63), (100, 100), (300, 512), (7,))
    weights = [torch.nn.Parameter(torch.zeros(size)) for size in sizes]
    made = optimizer([{"params": weights}])
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    made.step()
    saved = made.state_dict()["state"]
    held = [nbytes(leaf for leaf in tree_leaves(saved[index]) if leaf.ndim) for index in range(len(sizes))]
    per_number = [round(one / weight.numel(), 3) for one, weight in zip(held, weights, strict=True)]
    assert per_number == [2.031, 8, 8, 2.031, 8]
    assert optimizer_bytes(planned, weights) == (sum(held), 53 * 300 * 512)
    assert optimizer_bytes(replace(planned, device_type="cuda"), weights)[1] == 0
    four = replace(planned, ranks=4, batch_size=16)
    assert ways(four) == ("ddp",)
    assert ways(replace(four, optimizer=partial(torch.optim.AdamW, lr=1e-3))) == ("ddp", "fsdp2")
    with pytest.raises(ValueError, match="optimizer=adamw_8bit packs numbers in blocks"):
        four.check_divisible()


@pytest.fixture(scope="module")
def model() -> MemoryModel:
    """Of four ranks with four sequences each; it keeps its traces."""
    return MemoryModel(job("llama", ranks=4, batch_size=16))


def test_shards_and_recomputed_activations(model: MemoryModel) -> None:
    """FSDP2 splits what DDP has whole, and gathers some layers."""
    assert model.at(4, True, "ddp").activations < model.at(4, False, "ddp").activations / 5
    assert model.at(4, True, "ddp").peak < model.at(4, False, "ddp").peak
    whole, shards = model.at(4, False, "ddp"), model.at(4, False, "fsdp2")
    weights = nbytes(model.job.backbone.parameters())
    assert (whole.weights, whole.gradients, whole.optimizer, whole.exchange) == (weights, weights, 2 * weights, weights)
    assert (shards.weights, shards.gradients, shards.optimizer) == (weights // 4, weights // 4, weights // 2)
    assert shards.activations == whole.activations


def test_the_fastest_that_fits_is_suggested(model: MemoryModel) -> None:
    """Weights whole and activations kept; then shards; then activations recomputed; then nothing."""
    ddp, shards = model.at(4, False, "ddp").peak, model.at(4, False, "fsdp2").peak
    recomputed = model.at(4, True, "fsdp2").peak
    assert recomputed < shards < ddp
    expected = [(2 * ddp, False, "ddp"), (shards, False, "fsdp2"), (recomputed, True, "fsdp2")]
    for memory, checkpointing, strategy in expected:
        suggestion = suggest(model, memory)
        assert suggestion is not None
        found = suggestion.memory
        assert (found.checkpointing, found.strategy, found.micro_size) == (checkpointing, strategy, 4)
        assert found.peak <= memory
    assert suggest(model, 1000) is None


def test_time_and_money() -> None:
    planned = job("gpt2", tokens=10**9, ranks=2, batch_size=8)
    plan = make_plan(planned, Assumptions(device_of("cpu", 8, 0.5), utilisation=0.5, price=3.0))
    rate = 2 * 0.5e12 * 0.5 / plan.operations.training
    assert plan.speed.tokens_per_second == pytest.approx(rate)
    assert plan.speed.hours == pytest.approx(1e9 / rate / 3600)
    assert plan.speed.cost == pytest.approx(3.0 * 2 * plan.speed.hours)
    assert plan.fits
    assert plan.assumptions.usable == pytest.approx(0.9 * 8 * GIB)
    text = show(plan)
    assert "50% (stated) of 0.5 TFLOP/s in float32 (stated with --peak)" in text
    assert max(map(len, text.splitlines())) <= 125


def test_what_cannot_be_planned() -> None:
    planned = job("gpt2")
    for utilisation, price in ((0.0, None), (1.5, None), (0.4, -1.0)):
        with pytest.raises(ValueError, match=r"--(utilisation|price) .* is outside"):
            make_plan(planned, Assumptions(DEVICES["h100"], utilisation, price))
    with pytest.raises(ValueError, match="--on cpu has no known peak rate of float32 products: give it with --peak"):
        make_plan(planned, Assumptions(DEVICES["cpu"], 0.4, None))
    with pytest.raises(ValueError, match="--on 'abacus' is unknown: choose one of b200"):
        device_of("abacus", None, None)
    with pytest.raises(ValueError, match="--memory -3 is not a positive number"):
        device_of("h100", -3, None)
    with pytest.raises(ValueError, match=r"trainer.precision 'transformer-engine' cannot be planned: choose one of 32"):
        precision_of("transformer-engine", "cuda")
    assert precision_of("auto", "cuda").name == "bf16-mixed"
    assert precision_of("auto", "cpu").name == "32-true"
    with pytest.raises(ValueError, match=r"is not on this machine, and a plan downloads nothing: .*config.json"):
        shape_of("nobody/no-such-model")


def test_the_share_of_noisy_positions_counts() -> None:
    head = job("gpt2").backbone.flops_per_token(L, 1.0) - job("gpt2").backbone.flops_per_token(L, 0.0)
    planned = operations_of(job("gpt2", MaskedElbo()), checkpointing=False).training
    assert planned == pytest.approx(job("gpt2").backbone.flops_per_token(L, 0.0) + head / 2, rel=1e-3)


def test_units() -> None:
    assert [size(n) for n in (0, 2**20, 2**30, 150 * 2**30)] == ["0.0 MiB", "1.0 MiB", "1.0 GiB", "150 GiB"]
    assert [duration(h) for h in (0.001, 1.0, 30.0, 240.0)] == ["3.6 s", "60 min", "30.0 h", "10.0 days"]
