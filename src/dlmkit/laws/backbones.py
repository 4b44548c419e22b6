"""Backbones: which predictions depend on which tokens, to the last bit, in a network of random weights.

Shapes: L length, V vocabulary. `dependence[i, j]`: whether the prediction of token i moves with token j of x_t.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dlmkit.backbones.base import Backbone
from dlmkit.laws.findings import Finding, at_most, holds, law
from dlmkit.types import FULL_ATTENTION, Attention, Cache, Context, NetworkInput

LENGTH = 9
BLOCK_SIZE = 3
PREFIX = 6


def with_random_weights(backbone: Backbone) -> Backbone:
    """Return the network in eval mode with noise on every weight, so that none is zero and all matter.

    Scaled by the width: with nearly one-hot attention, weak dependences would be lost to rounding.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return backbone.eval()


def num_params(build: Callable[[], Backbone]) -> int:
    """Return the size of a backbone, without allocating its weights."""
    with torch.device("meta"):
        return build().num_params


def some_tokens(backbone: Backbone, seed: int = 0) -> Tensor:
    """Return random ids, int64 [1, L]."""
    return torch.randint(backbone.vocab_size, (1, LENGTH), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def hidden(
    backbone: Backbone, x_t: Tensor, segments: Tensor | None = None, attention: Attention = FULL_ATTENTION
) -> Tensor:
    """Return the final hidden states, [L, D]; equal ones are equal predictions."""
    t = torch.full((len(x_t),), 0.5, dtype=torch.float64)
    return backbone(NetworkInput(x_t, t, segments, attention=attention)).hidden[0]


def dependence(backbone: Backbone, segments: Tensor | None = None, attention: Attention = FULL_ATTENTION) -> Tensor:
    """Return bool [L, L]: whether the prediction of token i (row) moves when token j (column) does."""
    x_t = some_tokens(backbone)
    before = hidden(backbone, x_t, segments, attention)
    columns = []
    for j in range(LENGTH):
        changed = x_t.clone()
        changed[0, j] = (changed[0, j] + 1) % backbone.vocab_size
        columns.append((hidden(backbone, changed, segments, attention) != before).any(-1))
    return torch.stack(columns, dim=1)


@torch.no_grad()
def dependence_in_blocks(backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Return bool [L, L] twice: whether the prediction of token i moves with noisy token j, and with clean token j."""

    def predicted(x_t: Tensor, x_0: Tensor) -> Tensor:
        t = torch.full((1,), 0.5, dtype=torch.float64)
        return backbone(NetworkInput(x_t, t, context=Context(x_0, BLOCK_SIZE))).hidden[0]

    x_t, x_0 = some_tokens(backbone), some_tokens(backbone, seed=1)
    before = predicted(x_t, x_0)
    noisy, clean = [], []
    for j in range(LENGTH):
        one = torch.arange(LENGTH) == j
        other_t, other_0 = ((tokens + one) % backbone.vocab_size for tokens in (x_t, x_0))
        noisy.append((predicted(other_t, x_0) != before).any(-1))
        clean.append((predicted(x_t, other_0) != before).any(-1))
    return torch.stack(noisy, dim=1), torch.stack(clean, dim=1)


def _first(backbone: Backbone) -> int:
    """Return the first token that is predicted."""
    return 0 if backbone.predicts_first else 1


@law()
def law_attends_where_it_may(backbone: Backbone) -> Iterator[Finding]:
    """A causal network attends to exactly the tokens before the predicted one, any other network to all."""
    depends, first = dependence(backbone), _first(backbone)
    past = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(-1)
    may = past if backbone.causal else torch.ones_like(past)
    if backbone.causal:
        leaks = int((depends & ~may)[first:].sum())
        own = int(depends.diagonal()[first:].sum())
        yield at_most(
            "a causal network never attends ahead",
            leaks,
            0.0,
            f"{leaks} predictions move with a token that is not before theirs, {own} of them with the very token that"
            " they predict: the likelihood is a copy",
        )
    missing = int((may & ~depends)[first:].sum())
    yield at_most(
        "no visible token is masked", missing, 0.0, f"{missing} pairs of prediction and visible token are cut off"
    )


@law()
def law_document_masking(backbone: Backbone) -> Iterator[Finding]:
    """Packed documents do not attend to each other; an EOS belongs to the document whose first token it predicts."""
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    depends, first = dependence(backbone, segments), _first(backbone)
    apart = segments[0][:, None] != segments[0][None, :]
    if backbone.shift:
        apart[:, 3] = False  # the last token of a document, at which the next one's first token is predicted
    leaks = int((depends & apart)[first:].sum())
    yield at_most("documents do not leak", leaks, 0.0, f"{leaks} predictions move with a token of another document")


def _causal(backbone: Backbone) -> str | None:
    return "it is causal, and attention does not open" if backbone.causal else None


@law(unless=_causal)
def law_annealing_keeps_the_past(backbone: Backbone) -> Iterator[Finding]:
    """During annealing the past is always attended to; nothing else is at ratio 0, everything at ratio 1."""
    first = _first(backbone)
    past = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(-1)
    for ratio in (0.0, 0.3):
        depends = dependence(backbone, attention=Attention(ratio))
        masked = int((past & ~depends)[first:].sum())
        yield at_most(
            "annealing never masks the past", masked, 0.0, f"{masked} past tokens are masked at ratio {ratio}"
        )
        if ratio == 0.0 and backbone.shift:
            ahead = int((depends & ~past)[first:].sum())
            yield at_most("annealing starts causal", ahead, 0.0, f"{ahead} later tokens are attended to at ratio 0")
    full = dependence(backbone, attention=Attention(1.0))[first:].all()
    yield holds("annealing ends bidirectional", full, "tokens are masked at ratio 1")


def _without_blocks(backbone: Backbone) -> str | None:
    if not backbone.supports_context:
        return "it reads no clean context"
    return "it is causal, and block diffusion is not" if backbone.causal else None


@law(unless=_without_blocks)
def law_block_masking(backbone: Backbone) -> Iterator[Finding]:
    """In block diffusion a token is predicted from the noisy tokens of its block and the clean ones before it alone."""
    noisy, clean = dependence_in_blocks(backbone)
    first, block = _first(backbone), torch.arange(LENGTH) // BLOCK_SIZE
    own, earlier = block[:, None] == block[None, :], block[:, None] > block[None, :]
    for name, depends, may in (("noisy", noisy, own), ("clean", clean, earlier)):
        leaks, missing = (int(wrong[first:].sum()) for wrong in (depends & ~may, may & ~depends))
        what = "of another block" if name == "noisy" else "of their own or a later block"
        yield at_most(
            f"{name} tokens do not leak across blocks",
            leaks,
            0.0,
            f"{leaks} predictions move with a {name} token {what}: the bound is wrong",
        )
        yield at_most(
            f"no visible {name} token is masked",
            missing,
            0.0,
            f"{missing} pairs of prediction and {name} token that should be visible are cut off",
        )


def _without_mask_token(backbone: Backbone) -> str | None:
    return None if backbone.mask_id is not None else "it has no mask token"


@law(unless=_without_mask_token)
def law_mask_is_never_predicted(backbone: Backbone) -> Iterator[Finding]:
    """The mask's logit is -inf in every prediction."""
    x_t = some_tokens(backbone)
    with torch.no_grad():
        prediction = backbone(NetworkInput(x_t, torch.zeros(1, dtype=torch.float64)))
        chances = prediction.logits(torch.ones_like(x_t, dtype=torch.bool)).softmax(-1)
    assert backbone.mask_id is not None
    chance = float(chances[:, backbone.mask_id].max())
    yield at_most("the mask is never predicted", chance, 0.0, f"the mask has probability {chance:.3g} in a prediction")


PREFIX_ERROR = 1e-5
"""Difference of logits, relative to their size, that another order of summation explains in float32."""


@law()
def law_prefix_is_equivalent(backbone: Backbone) -> Iterator[Finding]:
    """A prefix handed over by `prefill`, in one or two pieces, gives the predictions of the whole text.

    In block diffusion too, for rows of the cache that are selected, and again from the same cache.
    """
    sizes = [None] if _without_blocks(backbone) else [None, BLOCK_SIZE]
    x_t = torch.cat([some_tokens(backbone, seed) for seed in (1, 2)])
    rows = torch.tensor([1, 0, 1])
    for size in sizes:
        whole = _after_prefix(backbone, x_t, None, size)
        kind = "a prefix" if size is None else "clean blocks"
        for pieces in ([x_t[:, :PREFIX]], [x_t[:, :BLOCK_SIZE], x_t[:, BLOCK_SIZE:PREFIX]]):
            caches: list[Cache] = []
            for piece in pieces:
                with torch.no_grad():
                    caches.append(backbone.prefill(piece, size, caches[-1] if caches else None))
            error = _share(_after_prefix(backbone, x_t, caches[-1], size), whole)
            meaning = f"logits behind {kind} in {len(pieces)} pieces are off by a share of {error:.2g}"
            yield at_most("prefix = whole text", error, PREFIX_ERROR, meaning)
        error = _share(_after_prefix(backbone, x_t[rows], caches[-1].select(rows), size), whole[rows])
        meaning = f"logits behind selected rows of {kind} are off by a share of {error:.2g}"
        yield at_most("selected rows = their texts", error, PREFIX_ERROR, meaning)
        with torch.no_grad():
            anew = backbone.prefill(pieces[-1], size, caches[0])
        again = max(_share(_after_prefix(backbone, x_t, cache, size), whole) for cache in (caches[-1], anew))
        yield at_most("a cache does not change", again, PREFIX_ERROR, f"the second use of {kind} is off by {again:.2g}")


@law()
def law_frozen_tokens_are_right_at_first(backbone: Backbone) -> Iterator[Finding]:
    """At the state where it was made, a cache of `freeze` gives the predictions of the whole text, in any rows."""
    x_t = torch.cat([some_tokens(backbone, seed) for seed in (1, 2)])
    t, rows = torch.tensor([0.5, 0.25], dtype=torch.float64), torch.tensor([1, 0, 1])
    with torch.no_grad():
        whole = _finite(backbone, NetworkInput(x_t, t))
        for around, stop in (("prefix", LENGTH), ("both", PREFIX)):
            cache = backbone.freeze(x_t, t, BLOCK_SIZE, stop, around)
            run = x_t[:, BLOCK_SIZE:stop]
            for chosen in (torch.arange(2), rows):
                found = _finite(backbone, NetworkInput(run[chosen], t[chosen], cache=cache.select(chosen)))
                error = _share(found, whole[chosen, BLOCK_SIZE:stop])
                meaning = f"logits with around={around} are off by a share of {error:.2g} before anything has changed"
                yield at_most("frozen = whole text", error, PREFIX_ERROR, meaning)


@torch.no_grad()
def _after_prefix(backbone: Backbone, x_t: Tensor, cache: Cache | None, block_size: int | None) -> Tensor:
    """Return the logits of what follows the prefix, [B, L - P, V]; without a cache from one whole pass."""
    t = torch.full((len(x_t),), 0.5, dtype=torch.float64)
    inputs, rest = NetworkInput(x_t[:, PREFIX:], t, cache=cache), slice(0, None)
    if cache is None:
        context = None if block_size is None else Context(x_t, block_size, last=True)
        inputs, rest = NetworkInput(x_t, t, context=context), slice(PREFIX, None)
    return _finite(backbone, inputs)[:, rest]


def _finite(backbone: Backbone, inputs: NetworkInput) -> Tensor:
    """Return logits [B, L, V], with zeros for the mask."""
    logits = backbone(inputs).logits(torch.ones_like(inputs.x_t, dtype=torch.bool)).unflatten(0, inputs.x_t.shape)
    return logits.masked_fill(logits.isneginf(), 0.0)


def _share(one: Tensor, whole: Tensor) -> float:
    return float((one - whole).abs().max() / whole.abs().max())


LAWS = [
    law_attends_where_it_may,
    law_document_masking,
    law_annealing_keeps_the_past,
    law_block_masking,
    law_mask_is_never_predicted,
    law_prefix_is_equivalent,
    law_frozen_tokens_are_right_at_first,
]
