"""Keys and values of a prefix: the predictions of the whole text, computed at the new positions alone.

Shapes: B sequences, L positions of which P are the prefix, D hidden size.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dlmkit.backbones.base import Backbone
from dlmkit.backbones.dit import DiT
from dlmkit.backbones.kv_cache import KeyValueCache
from dlmkit.prefix import TokenPrefix
from dlmkit.types import Attention, Cache, Context, NetworkInput
from networks import (
    BOS,
    DIFFERENTIABLE,
    MASK,
    WITH_COMPILER,
    L,
    V,
    at_half,
    hf_network,
    network,
    randomised,
    some_tokens,
)

KINDS = [*DIFFERENTIABLE, pytest.param("dit", "sdpa", id="dit")]
FLEX = [
    pytest.param(family, "flex_attention", id=f"{family}-flex", marks=[WITH_COMPILER])
    for family in (("dit", "mistral") if "DLMKIT_ALL_TESTS" in os.environ else ("dit",))
]
"""Each is compiled, for seconds; the masks of all are made in one place."""
EVERY_NETWORK = pytest.mark.parametrize(("family", "attention"), KINDS)
SOME_NETWORKS = pytest.mark.parametrize("family", ["dit", "gpt2", "llama", "qwen3"])
ALIGNMENTS = ("bos", "shift", "plain")
P = 6


def a_network(family: str, attention: str = "sdpa", alignment: str = "bos", causal: bool = False) -> Backbone:
    """A tiny network whose every weight matters; causal ones do not read t."""
    bos = "prepend" if alignment == "bos" else "none"
    if family != "dit":
        if alignment != "plain":
            return network(family, attention, causal, bos)
        torch.manual_seed(0)
        return randomised(hf_network(family, attention=attention, causal=causal, shift=False, bos="none"))
    torch.manual_seed(0)
    keywords = {"shift": alignment != "plain", "bos_id": BOS if alignment == "bos" else None, "attention": attention}
    return randomised(DiT(V, MASK, 16, 16, 2, 2, 8, causal=causal, time_conditioned=not causal, **keywords))


def keys(cache: Cache) -> KeyValueCache:
    """The cache, which keeps keys and values."""
    assert isinstance(cache, KeyValueCache)
    assert cache.exact
    return cache


def prefilled(backbone: Backbone, tokens: Tensor, *pieces: int, block_size: int | None = None) -> KeyValueCache:
    cache: Cache | None = None
    with torch.no_grad():
        for piece in tokens.split(list(pieces), dim=1):
            cache = backbone.prefill(piece, block_size, cache)
    assert cache is not None
    return keys(cache)


@torch.no_grad()
def hidden(backbone: Backbone, x_t: Tensor, cache: Cache | None = None, **keywords: object) -> Tensor:
    return backbone(NetworkInput(x_t, at_half(x_t), cache=cache, **keywords)).hidden


def assert_close(one: Tensor, other: Tensor) -> None:
    """Equal to a share of 1e-5 of the largest number, as another order of sums has it."""
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


# Predictions are those of one pass


@pytest.mark.parametrize("alignment", ["bos", "shift"])
@EVERY_NETWORK
def test_causal_networks(family, attention, alignment):
    backbone, x = a_network(family, attention, alignment, causal=True), some_tokens(2, L)
    whole = hidden(backbone, x)
    for pieces in ((P,), (0, 2, 1, 3)):
        cache = prefilled(backbone, x[:, :P], *pieces)
        assert cache.stored is not None
        assert len(cache.stored.positions) == P + (alignment == "bos")
        assert_close(hidden(backbone, x[:, P:], cache), whole[:, P:])
        assert_close(hidden(backbone, x[:, P : P + 1], cache), whole[:, P : P + 1])


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@EVERY_NETWORK
def test_blocks(family, attention, alignment):
    """Behind clean blocks in one piece and in several, and with a short last block; training has one pass for all."""
    backbone, x_0, x_t = a_network(family, attention, alignment), some_tokens(2, L), some_tokens(2, L, seed=1)
    for size, start in ((1, 5), (2, 6), (3, 6), (4, 8)):
        end = min(start + size, L)
        context = Context(torch.cat([x_0[:, :start], x_t[:, start:end]], 1), size)
        training = hidden(backbone, torch.cat([x_0[:, :start], x_t[:, start:end]], 1), context=context)[:, start:]
        first = start // size // 2 * size
        for pieces in ((start,), (0, first, start - first)):
            cache = prefilled(backbone, x_0[:, :start], *pieces, block_size=size)
            assert_close(hidden(backbone, x_t[:, start:end], cache), training)
            assert_close(hidden(backbone, x_t[:, start:end], TokenPrefix(x_0[:, :start], size)), training)


@SOME_NETWORKS
def test_rows_that_are_selected(family):
    x = some_tokens(3, L)
    rows = torch.tensor([2, 0, 2, 1])
    for backbone, size in ((a_network(family, causal=True), None), (a_network(family), 3)):
        cache = prefilled(backbone, x[:, :P], P, block_size=size)
        whole = hidden(backbone, x[:, P:], cache)
        assert_close(hidden(backbone, x[rows, P:], cache.select(rows)), whole[rows])
        with torch.no_grad():
            some = NetworkInput(x[:, P:], at_half(x), cache=cache).select(rows)
            assert_close(backbone(some).hidden, whole[rows])
        again = prefilled(backbone, x[:, :3], 3, block_size=size).select(rows)
        longer = backbone.prefill(x[rows, 3:P], size, again)
        assert_close(hidden(backbone, x[rows, P:], longer), whole[rows])
    bare = TokenPrefix(x[:, :P], None)
    assert torch.equal(bare.select(rows).tokens, x[rows, :P])


@SOME_NETWORKS
def test_a_cache_is_a_value(family):
    """Neither a call nor a longer prefix changes it."""
    backbone, x = a_network(family), some_tokens(2, L)
    cache = prefilled(backbone, x[:, :3], 3, block_size=3)
    before = [layer.keys.clone() for layer in cache.stored.layers]
    first = hidden(backbone, x[:, 3:P], cache)
    backbone.prefill(x[:, 3:P], cache=cache)
    assert torch.equal(hidden(backbone, x[:, 3:P], cache), first)
    assert all(torch.equal(layer.keys, old) for layer, old in zip(cache.stored.layers, before, strict=True))


@pytest.mark.parametrize(("family", "attention"), FLEX)
def test_flex_attention(family, attention):
    backbone, x_0, x_t = a_network(family, attention), some_tokens(2, L), some_tokens(2, L, seed=1)
    cache = prefilled(backbone, x_0[:, :P], P, block_size=3)
    same = a_network(family)
    assert_close(hidden(backbone, x_t[:, P:], cache), hidden(same, x_t[:, P:], TokenPrefix(x_0[:, :P], 3)))
    causal, same = a_network(family, attention, causal=True), a_network(family, causal=True)
    assert_close(hidden(causal, x_t[:, P:], prefilled(causal, x_t[:, :P], P)), hidden(same, x_t)[:, P:])


# Work is done at the new positions alone


def products(backbone: Backbone, run: Callable[[], object]) -> int:
    """Operations of the products with weights, which are the same at each position that is read."""
    backbone.requires_grad_(False)  # the counter's hooks want a graph of what has gradients
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    counts = counter.get_flop_counts().get("Global", {})
    return sum(count for operation, count in counts.items() if str(operation) in ("aten.mm", "aten.addmm"))


@pytest.mark.parametrize("causal", [False, True], ids=["blocks", "causal"])
@pytest.mark.parametrize("alignment", ALIGNMENTS)
@SOME_NETWORKS
def test_only_new_positions_are_computed(family, alignment, causal):
    """The products are those of a text that is no longer than what is new."""
    if causal and alignment == "plain":
        pytest.skip("a causal network has a shift")
    backbone, x, size = a_network(family, alignment=alignment, causal=causal), some_tokens(2, L), None if causal else 3
    one, two = (products(backbone, lambda n=n: hidden(backbone, x[:, :n])) for n in (1, 2))

    def of(num: int) -> int:
        """Products of a plain pass over so many inputs; with BOS a bidirectional one has one input more than tokens."""
        return one + (two - one) * (num - 1 - (alignment == "bos" and not causal))

    short, cache = (prefilled(backbone, x[:, :end], end, block_size=size) for end in (3, P))
    # A block begins one position early, and ends with its last token; the state before a causal text is in the cache.
    inputs = 2 if causal else 3 + (alignment != "plain")
    assert products(backbone, lambda: hidden(backbone, x[:, P:], cache)) == of(inputs)
    assert products(backbone, lambda: hidden(backbone, x[:, P:], cache.text)) >= of(P + 3)
    assert products(backbone, lambda: backbone.prefill(x[:, 3:P], size, short)) == of(3)
    if causal:  # left to right, each token is read once
        assert products(backbone, lambda: hidden(backbone, x[:, P : P + 1], cache)) == 0


# Where it cannot be used, the text is read again


def test_annealing_reads_again():
    backbone, x = a_network("llama"), some_tokens(2, L)
    attention = Attention(0.4, seed=5)
    cache = prefilled(backbone, x[:, :P], P, block_size=3)
    whole = hidden(backbone, x, context=Context(x, 3, last=True), attention=attention)[:, P:]
    assert_close(hidden(backbone, x[:, P:], cache, attention=attention), whole)
    assert not torch.allclose(hidden(backbone, x[:, P:], cache), whole, atol=1e-3)


def test_more_than_one_block_reads_again():
    backbone, x = a_network("llama"), some_tokens(2, L)
    cache = prefilled(backbone, x[:, :4], 4, block_size=3)  # one block and a token
    assert_close(hidden(backbone, x[:, 4:6], cache), hidden(backbone, x[:, 4:6], cache.text))
    assert_close(hidden(backbone, x[:, 4:], cache), hidden(backbone, x[:, 4:], cache.text))


def test_recomputed_activations_read_again():
    """transformers' layers drop the keys of the past in training with gradient checkpointing."""
    backbone, x = randomised(hf_network("llama", causal=True, gradient_checkpointing=True)), some_tokens(2, L)
    whole, cache = hidden(backbone, x)[:, P:], prefilled(backbone, x[:, :P], P)
    backbone.train()
    prediction = backbone(NetworkInput(x[:, P:], at_half(x), cache=cache))
    assert_close(prediction.hidden.detach(), whole)
    assert isinstance(backbone.prefill(x[:, :P]), TokenPrefix)


def test_a_bidirectional_network_without_blocks_keeps_tokens():
    for family in ("dit", "llama"):
        assert isinstance(a_network(family).prefill(some_tokens(2, P)), TokenPrefix)


def test_a_causal_network_that_reads_t_keeps_tokens():
    """It reads t at the prefix too."""
    backbone, x = randomised(DiT(V, MASK, 16, 16, 2, 2, 8, causal=True, shift=True, bos_id=BOS)), some_tokens(2, L)
    assert not backbone.supports_cache
    cache = backbone.prefill(x[:, :P])
    assert isinstance(cache, TokenPrefix)
    assert_close(hidden(backbone, x[:, P:], cache), hidden(backbone, x)[:, P:])


# Kernels, precision, adapters


def test_a_mask_is_made_only_where_one_is_needed():
    """So that a kernel without masks, such as flash attention, runs everywhere else."""
    x = some_tokens(2, L)
    for family, causal, num, kernel in (
        ("llama", False, 3, "eager"),
        ("llama", True, 1, "eager"),
        ("llama", True, 3, "sdpa"),
        ("mistral", False, 3, "sdpa"),  # a window
    ):
        backbone = randomised(hf_network(family, causal=causal, attention="eager", attention_with_mask="sdpa"))
        cache = prefilled(backbone, x[:, :P], P, block_size=None if causal else 6)
        behind = hidden(backbone, x[:, P : P + num], cache)
        assert backbone.model.config._attn_implementation == kernel
        assert_close(behind, hidden(backbone, x[:, P : P + num], cache.text))


@SOME_NETWORKS
def test_bf16_weights_in_inference_mode(family):
    backbone, x = a_network(family, causal=True).bfloat16(), some_tokens(2, L)
    with torch.inference_mode():
        cache = keys(backbone.prefill(x[:, :P]))
        assert cache.stored.layers[0].keys.dtype == torch.bfloat16
        behind, whole = hidden(backbone, x[:, P:], cache), hidden(backbone, x)[:, P:]
    assert float((behind - whole).abs().mean()) < 0.01 * float(whole.abs().mean())


def test_gradients_reach_the_prefix():
    """Keys that are kept with gradients are part of the graph, as the tokens that are read again are."""
    backbone, x = a_network("llama", causal=True), some_tokens(2, L)
    gradients = []
    for cache in (backbone.prefill(x[:, :P]), TokenPrefix(x[:, :P], None)):
        loss = backbone(NetworkInput(x[:, P:], at_half(x), cache=cache)).hidden.square().sum()
        gradients.append(torch.autograd.grad(loss, backbone.model.get_input_embeddings().weight)[0])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_adapters():
    pytest.importorskip("peft")
    lora = {"rank": 2, "alpha": 4, "dropout": 0.0, "train_embeddings": False}
    backbone, x = randomised(hf_network("llama", causal=True, lora=lora)), some_tokens(2, L)
    assert_close(hidden(backbone, x[:, P:], prefilled(backbone, x[:, :P], 2, 4)), hidden(backbone, x)[:, P:])
