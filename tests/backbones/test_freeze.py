"""Keys and values of noisy tokens around a run: right at the state where they were made, and older at every later one.

Shapes: B sequences, L positions, a run of tokens [START, STOP).
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dlmkit.backbones.base import Backbone
from dlmkit.backbones.dit import DiT
from dlmkit.backbones.kv_cache import KeyValueCache
from dlmkit.prefix import TokenPrefix
from dlmkit.types import Attention, Cache, NetworkInput
from networks import BOS, DIFFERENTIABLE, MASK, L, V, at_half, hf_network, network, randomised, some_tokens

EVERY_NETWORK = pytest.mark.parametrize(
    ("family", "attention"), [*DIFFERENTIABLE, pytest.param("dit", "sdpa", id="dit")]
)
ALIGNED = pytest.mark.parametrize("alignment", ["bos", "shift", "plain"])
START, STOP = 3, 6
RUNS = (("prefix", START, L), ("prefix", 0, L), ("both", START, STOP), ("both", 0, STOP), ("both", START, L))


def a_network(family: str, attention: str = "sdpa", alignment: str = "bos") -> Backbone:
    bos = "prepend" if alignment == "bos" else "none"
    torch.manual_seed(0)
    if family == "dit":
        bos_id = BOS if alignment == "bos" else None
        return randomised(DiT(V, MASK, 16, 16, 2, 2, 8, shift=alignment != "plain", bos_id=bos_id))
    if alignment == "plain":
        return randomised(hf_network(family, attention=attention, shift=False, bos="none"))
    return network(family, attention, bos=bos)


@torch.no_grad()
def hidden(backbone: Backbone, x_t: Tensor, cache: Cache | None = None, **keywords: object) -> Tensor:
    return backbone(NetworkInput(x_t, at_half(x_t), cache=cache, **keywords)).hidden


@torch.no_grad()
def frozen(backbone: Backbone, x_t: Tensor, around: str, start: int, stop: int) -> Cache:
    return backbone.freeze(x_t, at_half(x_t), start, stop, around)


def assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


def changed(x_t: Tensor, position: int) -> Tensor:
    other = x_t.clone()
    other[:, position] = (other[:, position] + 1) % V
    return other


@ALIGNED
@EVERY_NETWORK
def test_it_is_right_at_its_own_state_and_drifts_later(family, attention, alignment):
    backbone, x_t = a_network(family, attention, alignment), some_tokens(2, L)
    later = changed(x_t, START + 1)
    before, after = hidden(backbone, x_t), hidden(backbone, later)
    for around, start, stop in RUNS:
        cache, scored = frozen(backbone, x_t, around, start, stop), slice(max(start, 1), stop)
        first = scored.start - start  # token 0 has no prediction without BOS
        assert_close(hidden(backbone, x_t[:, start:stop], cache)[:, first:], before[:, scored])
        drifted = hidden(backbone, later[:, start:stop], cache)[:, first:]
        assert (drifted - before[:, scored]).abs().max() > 1e-2  # what changes in the run is read
        if not cache.exact:
            assert (drifted - after[:, scored]).abs().max() > 1e-4
        else:
            assert_close(drifted, after[:, scored])


def test_what_is_kept():
    """All inputs but those at which the run stands or is predicted."""
    for alignment, around, kept in (
        ("bos", "prefix", [0, 1, 2]),
        ("bos", "both", [0, 1, 2, 7, 8, 9]),
        ("shift", "both", [0, 1, 6, 7, 8]),
        ("plain", "both", [0, 1, 2, 6, 7, 8]),
    ):
        cache = frozen(
            a_network("llama", alignment=alignment), some_tokens(2, L), around, START, L if around == "prefix" else STOP
        )
        assert isinstance(cache, KeyValueCache)
        assert not cache.exact
        assert cache.length == START
        assert cache.stored.positions.tolist() == kept


@ALIGNED
@pytest.mark.parametrize("family", ["dit", "gpt2"])
def test_only_the_run_is_computed(family, alignment):
    backbone, x_t = a_network(family, alignment=alignment), some_tokens(2, L)
    backbone.requires_grad_(False)

    def products(num: int, cache: Cache | None = None) -> int:
        with FlopCounterMode(display=False) as counter:
            hidden(backbone, x_t[:, :num], cache)
        counts = counter.get_flop_counts()["Global"]
        return sum(count for operation, count in counts.items() if str(operation) in ("aten.mm", "aten.addmm"))

    # With BOS a plain pass over 3 tokens has the 4 inputs of a run of 3; with a shift alone it takes 4 tokens.
    cache = frozen(backbone, x_t, "both", START, STOP)
    assert products(STOP - START, cache) == products(STOP - START + (alignment == "shift"))
    assert products(STOP - START, cache.text) == products(L)


def test_a_network_without_such_keys_reads_again_and_is_exact():
    """A causal one, one under annealing, and every denoiser that keeps tokens alone."""
    x_t, later = some_tokens(2, L), changed(some_tokens(2, L), START + 1)
    causal = network("llama", causal=True)
    cache = frozen(causal, x_t, "both", START, STOP)
    assert isinstance(cache, TokenPrefix)
    assert cache.exact
    assert_close(hidden(causal, later[:, START:STOP], cache), hidden(causal, later)[:, START:STOP])
    backbone, attention = network("llama"), Attention(0.4, seed=1)
    cache = frozen(backbone, x_t, "both", START, STOP)
    annealed = hidden(backbone, later[:, START:STOP], cache, attention=attention)
    assert_close(annealed, hidden(backbone, later, attention=attention)[:, START:STOP])
    rows = torch.tensor([1, 0, 1])
    again = hidden(backbone, later[rows, START:STOP], cache.text.select(rows))
    assert_close(again, hidden(backbone, later)[rows, START:STOP])


@pytest.mark.parametrize(
    ("start", "stop", "around", "message"),
    [
        (3, 3, "both", "tokens 3 to 3 are not a run inside of 9"),
        (3, 10, "both", "tokens 3 to 10 are not a run"),
        (3, 6, "prefix", r"give stop=9, not 6, or around=both"),
        (3, 6, "suffix", "around 'suffix' is unknown: choose one of prefix, both"),
    ],
)
def test_runs_that_are_refused(start, stop, around, message):
    with pytest.raises(ValueError, match=message):
        frozen(network("llama"), some_tokens(2, L), around, start, stop)


def test_another_number_of_tokens_is_refused():
    backbone, x_t = network("llama"), some_tokens(2, L)
    cache = frozen(backbone, x_t, "both", START, STOP)
    with pytest.raises(ValueError, match="x_t has 2 tokens, and the cache is of what is around 3"):
        hidden(backbone, x_t[:, START : STOP - 1], cache)
