"""Agreement of cached predictions with uncached ones: complete where the cache was made, less where it drifts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dlmkit.evaluation.cache_agreement import State, cache_agreement
from dlmkit.prefix import TokenPrefix
from dlmkit.types import Cache, NetworkInput
from networks import MASK, L, V, at_half, network, some_tokens

START, STOP = 3, 7


def a_state(tokens: Tensor) -> State:
    where = torch.zeros_like(tokens, dtype=torch.bool)
    where[:, START:STOP] = tokens[:, START:STOP] == MASK
    return State(tokens, at_half(tokens), where)


def masked(seed: int = 0) -> State:
    """Texts whose run is masked but for one token."""
    tokens = some_tokens(8, L, seed=seed)
    tokens[:, START + 1 : STOP] = MASK
    return a_state(tokens)


def network_input(state: State, cache: Cache | None = None) -> NetworkInput:
    return NetworkInput(state.tokens, state.t, cache=cache)


def one_token_later(state: State) -> State:
    tokens = state.tokens.clone()
    tokens[:, START + 1] = (MASK + 1) % V
    return a_state(tokens)


@pytest.mark.parametrize("family", ["dit", "llama"])
def test_it_agrees_where_it_was_made_and_less_later(family):
    backbone, state = network(family), masked()
    with torch.no_grad():
        cache = backbone.freeze(state.tokens, state.t, START, STOP, "both")
    first = cache_agreement(backbone, cache, STOP - START, [state])
    assert first.same_argmax == 1.0
    assert first.num_positions == int(state.where.sum())
    assert abs(first.kl) < 1e-8
    later = one_token_later(state)
    drifted = cache_agreement(backbone, cache, STOP - START, [later])
    assert drifted.kl > 1e-6
    both = cache_agreement(backbone, cache, STOP - START, [state, later])
    weights = [first.num_positions, drifted.num_positions]
    assert both.num_positions == sum(weights)
    assert both.kl == pytest.approx((first.kl * weights[0] + drifted.kl * weights[1]) / sum(weights))
    exact = TokenPrefix(state.tokens[:, :START], None, state.tokens[:, STOP:])
    assert abs(cache_agreement(backbone, exact, STOP - START, [later]).kl) < 1e-8


def test_the_numbers_are_those_of_the_two_distributions():
    """KL of what the cache changed, from the logits themselves."""
    backbone, state = network("llama"), masked()
    with torch.no_grad():
        cache = backbone.freeze(state.tokens, state.t, START, STOP, "both")
        later = one_token_later(state)
        whole, cached = (
            backbone(inputs).logits(where)
            for inputs, where in (
                (network_input(later), later.where),
                (network_input(replace(later, tokens=later.tokens[:, START:STOP]), cache), later.where[:, START:STOP]),
            )
        )
    kept = torch.arange(V) != MASK
    p, q = (torch.distributions.Categorical(logits=logits[:, kept].double()) for logits in (whole, cached))
    found = cache_agreement(backbone, cache, STOP - START, [later])
    assert found.kl == pytest.approx(float(torch.distributions.kl_divergence(p, q).mean()), rel=1e-6)
    assert found.same_argmax == float((whole.argmax(-1) == cached.argmax(-1)).double().mean())


def test_what_cannot_be_compared():
    backbone, state = network("llama"), masked()
    cache = TokenPrefix(state.tokens[:, :START], None, state.tokens[:, STOP:])
    with pytest.raises(ValueError, match="where has positions outside of tokens 3 to 7"):
        cache_agreement(backbone, cache, STOP - START, [replace(state, where=torch.ones_like(state.where))])
    with pytest.raises(ValueError, match="no position to compare"):
        cache_agreement(backbone, cache, STOP - START, [replace(state, where=torch.zeros_like(state.where))])
