"""The bytes that a plan says a step keeps are those that a real step keeps, counted on real tensors at tiny size."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from dlmkit.backbones.base import Backbone
from dlmkit.backbones.dit import DiT
from dlmkit.backbones.hf import HFBackbone
from dlmkit.corruption.independent import Independent
from dlmkit.objectives.autoregressive import Autoregressive
from dlmkit.objectives.base import Objective
from dlmkit.objectives.block import BlockElbo
from dlmkit.objectives.masked import MaskedElbo
from dlmkit.planning.fake_step import KernelsOf, nbytes
from dlmkit.planning.job import Job, precision_of
from dlmkit.planning.live import LiveBytes
from dlmkit.planning.memory import MemoryModel
from dlmkit.planning.trace import Tracer
from dlmkit.processes.absorbing import Absorbing
from dlmkit.processes.none import NoNoise
from dlmkit.schedules.linear import Linear
from dlmkit.step import losses, network_input
from dlmkit.types import Noised

V, MASK, L, B, LAYERS = 80, 79, 48, 5, 4

GPT2 = {"model_type": "gpt2", "n_layer": LAYERS, "n_head": 4, "n_embd": 64, "n_positions": 64}
GPT2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "intermediate_size": 160,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def network(kind: str, causal: bool, recomputed: bool) -> Backbone:
    if kind == "dit":
        return DiT(V, MASK, L, 64, LAYERS, 4, 32, causal=causal, shift=causal)
    return HFBackbone(
        vocab_size=V,
        mask_id=MASK,
        bos_id=None,
        causal=causal,
        shift=True,
        bos="none",
        attention="sdpa",
        attention_with_mask=None,
        gradient_checkpointing=recomputed,
        lora={"rank": 0},
        name=None,
        config=dict(GPT2 if kind == "gpt2" else LLAMA),
    )


def job(kind: str, objective: Objective[Any] | None = None, precision: str = "32-true", **settings: Any) -> Job:
    objective = objective or MaskedElbo()
    causal = objective.exact
    with torch.device("meta"):
        networks = {
            recomputed: network(kind, causal, recomputed) for recomputed in (False, True)[: 1 + (kind != "dit")]
        }
    made = Job(
        backbones=networks,
        objective=objective,
        process=NoNoise(V, MASK) if causal else Absorbing(Linear(), V, MASK),
        corruption=Independent(),
        ar_weight=0.0,
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        length=L,
        batch_size=B,
        accumulate=1,
        tokens=1000,
        ranks=1,
        strategy="single",
        precision=precision_of(precision, "cpu"),
        checkpointing=False,
        device_type="cpu",
    )
    return replace(made, **settings)


def real_step(planned: Job, kind: str, recomputed: bool) -> tuple[int, int]:
    """Take a step in which every token is noisy; return (bytes that the trunk keeps, the most bytes alive in it)."""
    backbone = network(kind, planned.objective.exact, recomputed).train()
    x_0 = torch.randint(MASK, (B, L))
    blocks = L // planned.block_size if planned.block_size else 1
    t = torch.full((B, blocks) if blocks > 1 else (B,), 0.9, dtype=torch.float64)
    x_t = torch.full_like(x_0, MASK) if planned.process.has_noise else x_0
    noised = Noised(x_0, x_t, t, torch.ones_like(x_0, dtype=torch.bool), torch.ones_like(t))
    if not backbone.predicts_first:
        noised.scored[:, 0] = False
    autocast = partial(torch.autocast, "cpu", planned.precision.products, enabled=planned.precision.autocast)
    backbone(network_input(planned.objective, noised))  # masks that are kept are made
    with LiveBytes([*backbone.parameters(), *backbone.buffers()]) as live, autocast():
        prediction = backbone(network_input(planned.objective, noised))
        saved = live.now
        del prediction
    with LiveBytes([*backbone.parameters(), *backbone.buffers()]) as live:
        with autocast():
            loss = losses(planned.objective, planned.process, backbone, noised).total
        loss.backward()
    return saved, live.peak


CASES = [
    ("gpt2", MaskedElbo(), False, "32-true"),
    ("gpt2", Autoregressive(), True, "32-true"),
    ("llama", MaskedElbo(), True, "bf16-mixed"),
    ("llama", Autoregressive(), False, "bf16-mixed"),
    ("dit", BlockElbo(16, MaskedElbo()), False, "32-true"),
]


@pytest.mark.parametrize(("kind", "objective", "recomputed", "precision"), CASES)
def test_a_plan_has_the_bytes_of_a_real_step(
    kind: str, objective: Objective[Any], recomputed: bool, precision: str
) -> None:
    """From steps of two and three layers, and of two and three sequences, to five of each."""
    planned = job(kind, objective, precision)
    trace = Tracer(planned, recomputed).at(B)
    saved, peak = real_step(planned, kind, recomputed)
    assert trace.saved == pytest.approx(saved, rel=0.01)
    assert trace.peak == pytest.approx(peak, rel=0.08)


def test_dropout_takes_what_it_takes_on_a_gpu() -> None:
    """A byte for each element on the residual stream and none in attention, unlike the kernels of a CPU."""
    x = torch.ones(4, 6, 8, 16, requires_grad=True)
    dropout = torch.nn.Dropout(0.5)
    attention = partial(torch.nn.functional.scaled_dot_product_attention, dropout_p=0.1)
    for device_type, bytes_of_mask, scores in (("cuda", 1, False), ("cpu", 4, True)):
        with LiveBytes([x]) as live, KernelsOf(device_type):
            kept = dropout(x)
            assert live.now == x.numel() * (4 + bytes_of_mask)
            del kept
            mixed = attention(x, x, x)
            assert (live.now > 2 * nbytes([mixed])) is scores


def test_what_fits_is_the_most_that_fits() -> None:
    model = MemoryModel(job("dit", batch_size=64))
    for size in (1, 7, 31):
        memory = model.at(size, False, "single").peak
        assert model.largest(64, False, "single", memory) == size
        assert model.largest(64, False, "single", memory - 1) == size - 1
    assert model.largest(64, False, "single", 1e12) == 64
    assert model.largest(64, False, "single", 1000) == 0
    alone, accumulated = model.at(64, False, "single"), model.at(63, False, "single")
    more = accumulated.peak - alone.peak + (alone.activations - accumulated.activations)
    assert more == pytest.approx(alone.gradients, rel=0.1)


def test_a_plan_leaves_no_fake_masks_behind() -> None:
    planned = job("dit", BlockElbo(16, MaskedElbo()))
    Tracer(planned, False)
    saved, peak = real_step(planned, "dit", False)
    assert 0 < saved < peak
