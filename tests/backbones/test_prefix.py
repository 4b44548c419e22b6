"""A prefix handed over by `prefill` and then asked about: the predictions are those of one pass over everything.

Shapes: B sequences, L positions of which P are the prefix, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dlmkit.backbones.base import Backbone
from dlmkit.backbones.dit import DiT
from dlmkit.types import Attention, Cache, Context, NetworkInput
from networks import BOS, MASK, L, V, everywhere, hf_network, randomised, some_tokens

ALIGNMENTS = {
    "plain": {"shift": False, "bos": "none"},
    "shifted": {"shift": True, "bos": "none"},
    "shifted_bos": {"shift": True, "bos": "prepend"},
}
BACKBONES = ("dit", "gpt2", "llama", "qwen3")  # learned and rotary positions; qwen3 has windows
NETWORKS = pytest.mark.parametrize("kind", BACKBONES)
ALIGNED = pytest.mark.parametrize("alignment", ALIGNMENTS)
PIECES = pytest.mark.parametrize("pieces", [(6,), (2, 4), (1, 1, 4)], ids=str)
"""Lengths in which a prefix of P = 6 is handed over."""


def a_network(kind: str, alignment: str, causal: bool = False) -> Backbone:
    """A tiny network whose every weight matters."""
    chosen = ALIGNMENTS[alignment]
    torch.manual_seed(0)
    if kind == "dit":
        bos_id = BOS if chosen["bos"] == "prepend" else None
        return randomised(DiT(V, MASK, 16, 16, 2, 2, 8, causal=causal, shift=bool(chosen["shift"]), bos_id=bos_id))
    return randomised(hf_network(kind, causal=causal, **chosen))


def times(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def prefilled(backbone: Backbone, prefix: Tensor, pieces: tuple[int, ...], block_size: int | None = None) -> Cache:
    """The cache of a prefix [B, P] that is handed over in pieces."""
    cache = None
    for piece in prefix.split(list(pieces), dim=1):
        cache = backbone.prefill(piece, block_size, cache)
    assert cache is not None
    assert cache.length == prefix.shape[1]
    return cache


@torch.no_grad()
def logits(backbone: Backbone, inputs: NetworkInput) -> Tensor:
    """Logits of all positions, [B, L, V], without the mask's column of -inf."""
    kept = torch.arange(V) != MASK
    return backbone(inputs).logits(everywhere(inputs.x_t)).unflatten(0, inputs.x_t.shape)[..., kept]


@torch.no_grad()
def hidden(backbone: Backbone, inputs: NetworkInput) -> Tensor:
    """Input of the head, [B, L, D], whose rounding does not depend on how many positions the head runs at."""
    return backbone(inputs).hidden


def assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# The plain pass


@NETWORKS
@ALIGNED
@PIECES
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_what_follows_a_prefix_is_predicted_as_in_one_pass(kind, alignment, pieces, causal):
    if causal and not ALIGNMENTS[alignment]["shift"]:
        with pytest.raises(ValueError, match=r"set backbone\.shift=true"):
            a_network(kind, alignment, causal)
        return
    backbone, x_t, t = a_network(kind, alignment, causal), some_tokens(2, L), times(2)
    whole = NetworkInput(x_t, t)
    after = NetworkInput(x_t[:, 6:], t, cache=prefilled(backbone, x_t[:, :6], pieces))
    assert_close(logits(backbone, after), logits(backbone, whole)[:, 6:])
    if not backbone.supports_cache:  # the computation is the same
        assert torch.equal(hidden(backbone, after), hidden(backbone, whole)[:, 6:])


@NETWORKS
@ALIGNED
def test_predictions_depend_on_the_prefix(kind, alignment):
    """Otherwise the tests here could not fail."""
    backbone, x_t, t = a_network(kind, alignment), some_tokens(2, L), times(2)
    other = x_t.clone()
    other[:, 2] = (other[:, 2] + 1) % V
    one, changed = (
        logits(backbone, NetworkInput(x_t[:, 6:], t, cache=prefilled(backbone, tokens[:, :6], (6,))))
        for tokens in (x_t, other)
    )
    assert (one - changed).abs().amax(-1).min() > 1e-4


@NETWORKS
@ALIGNED
def test_an_empty_prefix_changes_nothing(kind, alignment):
    backbone, x_t, t = a_network(kind, alignment), some_tokens(2, L), times(2)
    cache = prefilled(backbone, x_t[:, :0], (0,))
    assert_close(logits(backbone, NetworkInput(x_t, t, cache=cache)), logits(backbone, NetworkInput(x_t, t)))


@pytest.mark.parametrize("kind", ["dit", "llama"])
def test_a_causal_network_goes_on_token_by_token(kind):
    """As the autoregressive sampler does: each token joins the prefix after it was predicted."""
    backbone, x, t = a_network(kind, "shifted_bos", causal=True), some_tokens(2, L), times(2)
    whole, cache = logits(backbone, NetworkInput(x, t)), None
    for position in range(L):
        here = NetworkInput(x[:, position : position + 1], t, cache=cache)
        assert_close(logits(backbone, here)[:, 0], whole[:, position])
        cache = backbone.prefill(x[:, position : position + 1], cache=cache)


@pytest.mark.parametrize("kind", ["dit", "llama"])
def test_a_prefix_within_annealing(kind):
    backbone, x_t, t = a_network(kind, "shifted_bos"), some_tokens(2, L), times(2)
    attention = Attention(0.4, seed=5)
    cache = prefilled(backbone, x_t[:, :6], (6,))
    whole = logits(backbone, NetworkInput(x_t, t, attention=attention))
    assert_close(logits(backbone, NetworkInput(x_t[:, 6:], t, attention=attention, cache=cache)), whole[:, 6:])
    assert not torch.allclose(whole, logits(backbone, NetworkInput(x_t, t)), atol=1e-3)


# Block diffusion


def block_cases() -> Iterator[tuple[int, int]]:
    """(block size, P): the prefix is whole blocks, what follows is one, the last perhaps shorter."""
    for block_size in (1, 2, 3, 4, 5):
        yield from ((block_size, start) for start in range(0, L, block_size))


@NETWORKS
@ALIGNED
@pytest.mark.parametrize(("block_size", "start"), list(block_cases()))
def test_a_block_after_clean_blocks_is_that_of_the_last_block_pass(kind, alignment, block_size, start):
    backbone, x_t, t = a_network(kind, alignment), some_tokens(2, L), times(2)
    end = min(start + block_size, L)
    tokens, block = x_t[:, :end], slice(start, end)
    pieces = (start // block_size // 2 * block_size, start - start // block_size // 2 * block_size)
    cache = prefilled(backbone, x_t[:, :start], pieces, block_size)
    after = NetworkInput(x_t[:, block], t, cache=cache)
    whole = NetworkInput(tokens, t, context=Context(tokens, block_size, last=True))
    scored = slice(0 if backbone.predicts_first or start else 1, None)
    assert_close(logits(backbone, after)[:, scored], logits(backbone, whole)[:, block][:, scored])
    if not backbone.supports_cache:
        assert torch.equal(hidden(backbone, after)[:, scored], hidden(backbone, whole)[:, block][:, scored])


@NETWORKS
@ALIGNED
@pytest.mark.parametrize("block_size", [1, 2, 3, 4])
def test_blocks_one_by_one_are_those_of_the_training_pass(kind, alignment, block_size):
    """Training predicts all blocks in one pass, each from the clean blocks before it; generation one at a time."""
    backbone, x_0, x_t = a_network(kind, alignment), some_tokens(2, L), some_tokens(2, L, seed=1)
    t = times(2, -(-L // block_size))
    training = logits(backbone, NetworkInput(x_t, t, context=Context(x_0, block_size)))
    cache = None
    for index, start in enumerate(range(0, L, block_size)):
        block = slice(start, min(start + block_size, L))
        cache = backbone.prefill(x_0[:, 0 if cache is None else cache.length : start], block_size, cache)
        after = logits(backbone, NetworkInput(x_t[:, block], t[:, index], cache=cache))
        scored = slice(0 if backbone.predicts_first or start else 1, None)
        assert_close(after[:, scored], training[:, block][:, scored])


# Around the network


def test_prefix_and_sequence_together_may_be_too_long():
    backbone = a_network("dit", "plain")
    cache = prefilled(backbone, some_tokens(1, 12), (12,))
    with pytest.raises(ValueError, match="length 21 is more than this backbone's 16 positions"):
        backbone(NetworkInput(some_tokens(1, L), times(1), cache=cache))
