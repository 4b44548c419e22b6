"""Kernels: flex attention computes what sdpa does, in plain and in block passes, and a fixed mask is built once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dlmkit.backbones import attention as attention_module
from dlmkit.backbones.attention import Mask, flex_mask, plain_mask
from dlmkit.backbones.base import Backbone
from dlmkit.backbones.block_layout import block_layout
from dlmkit.backbones.dit import DiT
from dlmkit.types import Attention, Context, NetworkInput
from networks import BOS, MASK, WITH_COMPILER, V, network, randomised, some_tokens

L = 12
CPU = torch.device("cpu")
SIZES = {"plain": None, "ones": 1, "threes": 3, "uneven": 5, "whole": L}
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 7, [0] * 2 + [1] * 4 + [2] * 6])
KINDS = ["dit", "dit-prepend", "dit-none", "llama-prepend", "llama-none", "mistral-prepend", "qwen3-none"]


def a_network(kind: str, attention: str, head_size: int = 8, causal: bool = False) -> Backbone:
    family, _, bos = kind.partition("-")
    if family != "dit":
        return network(family, attention, causal, bos)
    torch.manual_seed(0)
    bos_id, shift = BOS if bos == "prepend" else None, bool(bos)
    backbone = DiT(V, MASK, 16, 2 * head_size, 2, 2, 8, causal=causal, shift=shift, bos_id=bos_id, attention=attention)
    return randomised(backbone)


def passes(block_size: int | None, device: torch.device = CPU) -> Iterator[NetworkInput]:
    """Network inputs: without documents, with them, and with other ones of the same shape."""
    x_0, x_t = some_tokens(2, L).to(device), some_tokens(2, L, seed=1).to(device)
    num = 1 if block_size is None else -(-L // block_size)
    t = torch.rand(2, num, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).to(device)
    context = None if block_size is None else Context(x_0, block_size)
    for segments in (None, DOCUMENTS.to(device), DOCUMENTS.flip(0).to(device)):
        yield NetworkInput(x_t, t if context else t[:, 0], segments, context)


def scored(backbone: Backbone) -> slice:
    return slice(0 if backbone.predicts_first else 1, None)


@torch.no_grad()
def law_flex_is_sdpa(kind: str, size: str, causal: bool = False) -> None:
    flex, sdpa = (a_network(kind, attention, causal=causal) for attention in ("flex_attention", "sdpa"))
    for inputs in passes(SIZES[size]):
        ours, reference = (backbone(inputs).hidden[:, scored(backbone)] for backbone in (flex, sdpa))
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.compiled(usual=True)
@pytest.mark.parametrize("size", SIZES)
def test_flex_is_sdpa_in_the_kits_own_network(size):
    law_flex_is_sdpa("dit", size)


@WITH_COMPILER
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_flex_is_sdpa(kind, size):
    law_flex_is_sdpa(kind, size)


@WITH_COMPILER
@pytest.mark.parametrize("kind", ["dit-prepend", "dit-none", "mistral-prepend", "qwen3-none"])
def test_flex_is_sdpa_when_causal(kind):
    law_flex_is_sdpa(kind, "plain", causal=True)


@WITH_COMPILER
@pytest.mark.parametrize("size", ["plain", "threes"])
@pytest.mark.parametrize("kind", ["dit-prepend", "llama-prepend", "qwen3-none"])
@torch.no_grad()
def test_flex_is_sdpa_during_annealing(kind, size):
    """A mask that is drawn at every step: nothing of an earlier step's is left."""
    flex, sdpa = (a_network(kind, attention) for attention in ("flex_attention", "sdpa"))
    for plain in passes(SIZES[size]):
        for ratio, seed in ((0.0, 0), (0.5, 1), (0.5, 2), (1.0, 0)):
            inputs = replace(plain, attention=Attention(ratio, seed=seed))
            ours, reference = (backbone(inputs).hidden[:, scored(backbone)] for backbone in (flex, sdpa))
            torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


@WITH_COMPILER
def test_flex_follows_autocast():
    flex, sdpa = (a_network("dit-prepend", attention) for attention in ("flex_attention", "sdpa"))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, reference = (backbone(next(passes(3))).hidden for backbone in (flex, sdpa))
    assert ours.dtype == reference.dtype
    assert (ours - reference).abs().max() < 0.1 * reference.abs().max()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has no backward pass of flex attention on a CPU")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["dit", "dit-prepend", "dit-none"])
def test_gradients_of_flex_are_those_of_sdpa(kind, size):
    device = torch.device("cuda")
    flex, sdpa = (a_network(kind, attention, 16).to(device) for attention in ("flex_attention", "sdpa"))
    for inputs in passes(SIZES[size], device):
        gradients = [
            torch.autograd.grad(backbone(inputs).hidden[:, scored(backbone)].square().sum(), list(trained(backbone)))
            for backbone in (flex, sdpa)
        ]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2 * float(other.abs().max()))


def trained(backbone: Backbone) -> Iterator[Tensor]:
    """All but the head, which hidden states do not depend on."""
    return (parameter for name, parameter in backbone.named_parameters() if "unembedding" not in name)


# Fixed masks


def record_flex_masks(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    built: list[Tensor] = []
    monkeypatch.setattr(attention_module, "flex_mask", lambda mask: (built.append(mask), flex_mask(mask))[1])
    block_layout.cache_clear()
    plain_mask.cache_clear()
    return built


@WITH_COMPILER
@pytest.mark.parametrize(
    ("kind", "num_kinds"),
    [("dit", 1), ("dit-prepend", 1), ("llama-prepend", 1), ("mistral-prepend", 1), ("qwen3-none", 2)],
)
@torch.no_grad()
def test_a_flex_mask_is_built_once(kind, num_kinds, monkeypatch):
    """For all steps and layers of a network, whose layers may have windows (two kinds); for documents, every time."""
    backbone, built = a_network(kind, "flex_attention"), record_flex_masks(monkeypatch)
    plain, documents, _ = passes(3)
    for _ in range(3):
        backbone(plain)
    assert len(built) == num_kinds
    backbone(next(passes(1)))
    backbone(next(passes(1)))
    assert len(built) == 2 * num_kinds
    backbone(plain)
    assert len(built) == 2 * num_kinds
    backbone(documents)
    backbone(documents)
    assert len(built) == 4 * num_kinds


@WITH_COMPILER
@pytest.mark.parametrize(("kind", "causal"), [("dit", False), ("dit-none", True), ("llama-none", False)])
@torch.no_grad()
def test_the_flex_mask_of_a_plain_pass_is_built_once(kind, causal, monkeypatch):
    backbone, built = a_network(kind, "flex_attention", causal=causal), record_flex_masks(monkeypatch)
    for _ in range(3):
        backbone(next(passes(None)))
    assert len(built) == 1


def test_masks_of_other_passes_are_others():
    def mask(length=8, block_size=2, shift=True, has_bos=True, last=False, device=CPU) -> Mask:
        return block_layout(length, block_size, shift, has_bos, last, device).mask

    assert mask().flex is mask().flex
    others = [mask(length=6), mask(block_size=4), mask(shift=False), mask(has_bos=False), mask(last=True)]
    elsewhere = mask(device=torch.device("meta"))
    assert elsewhere.visible.device.type == "meta"
    assert len({id(one) for one in (mask(), *others, elsewhere)}) == 7
    assert len({id(one.flex) for one in (mask(), *others)}) == 6
    assert plain_mask(8, True, CPU).flex is plain_mask(8, True, CPU).flex
    assert plain_mask(8, True, CPU) is not plain_mask(8, False, CPU)
    window = mask().windowed(3, True)
    assert window.flex is mask().windowed(3, True).flex
    assert window is not mask().windowed(3, False)
    assert window is not mask().windowed(2, True)


def test_caches_of_masks_are_bounded():
    block_layout.cache_clear()
    for length in range(2, 2 + 2 * block_layout.cache_info().maxsize):
        block_layout(length, 2, False, False, False, CPU)
    assert block_layout.cache_info().currsize == block_layout.cache_info().maxsize <= 64
    assert plain_mask.cache_info().maxsize <= 64


@pytest.mark.parametrize("kind", ["dit-prepend", "llama-prepend"])
def test_a_mask_built_in_inference_mode_serves_training(kind):
    """Lightning validates in inference mode, whose tensors no backward pass may save."""
    block_layout.cache_clear()
    backbone = a_network(kind, "sdpa")
    inputs = next(passes(3))
    with torch.inference_mode():
        before = backbone(inputs).hidden
        assert not block_layout(L, 3, True, True, False, CPU).mask.flex.kv_indices.is_inference()
    after = backbone(inputs).hidden
    after.sum().backward()
    assert torch.equal(before, after.detach())


# Limits of flex attention


@pytest.mark.parametrize("kind", ["dit-prepend", "llama-prepend"])
def test_training_with_flex_on_a_cpu_is_refused(kind):
    backbone = a_network(kind, "flex_attention")
    with pytest.raises(ValueError, match=r"no backward pass on this device \(cpu\).*backbone\.attention=sdpa"):
        backbone(next(passes(3)))


def test_dit_refuses_dropout_with_flex_and_unknown_kernels():
    with pytest.raises(ValueError, match=r"dropout 0\.1 with backbone\.attention=flex_attention.*dropout=0"):
        DiT(V, MASK, 16, 16, 2, 2, 8, dropout=0.1, attention="flex_attention")
    with pytest.raises(ValueError, match="'eager' is not supported by this network: choose sdpa or flex_attention"):
        DiT(V, MASK, 16, 16, 2, 2, 8, attention="eager")


# Planted errors


def of_the_first(self: Mask, seen: dict[tuple[int, ...], Mask]) -> Mask:
    return seen.setdefault(tuple(self.visible.shape), self)


@WITH_COMPILER
@pytest.mark.parametrize("kind", ["dit-prepend", "llama-prepend"])
def test_a_mask_cached_by_its_shape_is_noticed(kind, monkeypatch):
    """The documents of the first step, at every step."""
    seen: dict[tuple[int, ...], Mask] = {}
    monkeypatch.setattr(Mask, "flex", property(lambda self: flex_mask(of_the_first(self, seen).visible)))
    with pytest.raises(AssertionError, match="not close"):
        law_flex_is_sdpa(kind, "threes")


@WITH_COMPILER
@pytest.mark.parametrize("kind", ["dit-prepend", "llama-prepend"])
def test_a_flex_mask_of_the_first_row_is_noticed(kind, monkeypatch):
    """The documents of the first sequence, for the whole batch."""
    monkeypatch.setattr(Mask, "flex", property(lambda self: flex_mask(self.visible[:1])))
    with pytest.raises(AssertionError, match="not close"):
        law_flex_is_sdpa(kind, "threes")
