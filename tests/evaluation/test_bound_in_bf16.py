"""A bound is evaluated in float32 where it counts, whatever precision the network trains in."""

from __future__ import annotations

from contextlib import AbstractContextManager
from math import sqrt

import pytest
import torch
from torch import Tensor, nn

from dlmkit.backbones.base import Backbone
from dlmkit.backbones.hf.families import FAMILIES
from dlmkit.evaluation.nelbo import SequenceScores, score_sequences
from dlmkit.objectives.base import Objective
from dlmkit.types import Batch
from laws import parts
from networks import MASK, WITH_COMPILER, V, network

NUM, LENGTH = 24, 8
CASES = sorted({(objective, process) for objective, process, _ in parts.objective_cases(parts.LINEAR)})


def in_bf16() -> AbstractContextManager[None]:
    """What Lightning's bf16-mixed runs a validation under."""
    return torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)


def sequences() -> Batch:
    tokens = torch.randint(V - 1, (NUM, LENGTH), generator=torch.Generator().manual_seed(2))
    tokens += tokens >= MASK
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))


@torch.no_grad()
def scores(objective: Objective, process: str, backbone: Backbone) -> SequenceScores:
    noise = parts.process(process, "log_linear", vocab_size=V, mask_id=MASK)
    return score_sequences(objective, noise, backbone, sequences(), torch.arange(NUM), num_times=2)


def assert_equal_within_its_error(objective: Objective, process: str, backbone: Backbone) -> None:
    exact = scores(objective, process, backbone)
    with in_bf16():
        rough = scores(objective, process, backbone)
    difference = (rough.nll - exact.nll).mean()
    assert 0.0 < difference.abs() < exact.nll.std() / sqrt(NUM)  # some rounding there must be


@pytest.mark.parametrize(("objective", "process"), CASES)
def test_the_bound_in_bf16_is_that_of_float32_for_every_objective(objective: str, process: str) -> None:
    causal = objective == "autoregressive"
    assert_equal_within_its_error(parts.objective(objective), process, network("gpt2", causal=causal))


@pytest.mark.parametrize("family", [*FAMILIES, "dit"])
def test_the_bound_in_bf16_is_that_of_float32_for_every_family(family: str) -> None:
    assert_equal_within_its_error(parts.objective("masked"), "absorbing", network(family, kernel_of(family)))


@pytest.mark.parametrize("attention", ["eager", pytest.param("flex_attention", marks=WITH_COMPILER)])
@pytest.mark.parametrize("causal", [False, True])
def test_the_bound_in_bf16_is_that_of_float32_for_every_kernel(attention: str, causal: bool) -> None:
    objective, process = ("autoregressive", "none") if causal else ("block", "absorbing")
    assert_equal_within_its_error(parts.objective(objective), process, network("llama", attention, causal))


def kernel_of(family: str) -> str:
    return "sdpa" if family == "dit" or "sdpa" in FAMILIES[family].kernels else "eager"


class Trunk(nn.Module):
    """A network whose last hidden states are kept."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.hidden: list[Tensor] = []

    def forward(self, inputs):
        prediction = self.backbone(inputs)
        self.hidden.append(prediction.hidden)
        return prediction


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_the_head_multiplies_in_float32(family: str) -> None:
    """The log-probabilities are those of a float64 head on the same hidden states; bf16 products are off by 1e-2."""
    trunk = Trunk(network(family, kernel_of(family), causal=True))
    with in_bf16():
        found = scores(parts.objective("autoregressive"), "none", trunk).nll
    head = trunk.backbone.head
    with torch.no_grad():
        logits = head.transform(trunk.hidden[0].double() @ head.weight.double().t())
        logits[..., MASK] = float("-inf")
        expected = -logits.log_softmax(-1).gather(-1, sequences().tokens[..., None])[..., 0].sum(-1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
