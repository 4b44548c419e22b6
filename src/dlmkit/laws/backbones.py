"""Backbones: who sees whom, to the last bit. A network of random weights will do; every weight should matter.

Shapes: L length, V vocabulary. `sight[i, j]` says whether the prediction about token i moves with token j of x_t.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dlmkit.backbones.base import Backbone
from dlmkit.laws.findings import Finding, at_most, holds

LENGTH = 9


def with_random_weights(backbone: Backbone) -> Backbone:
    """Return the network in eval mode with noise on every weight, so that none is zero and all matter.

    Scaled by the width: were attention all but one-hot, what a token sees faintly would be lost to rounding.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return backbone.eval()


def some_tokens(backbone: Backbone, seed: int = 0) -> Tensor:
    """Return random ids, int64 [1, L]."""
    return torch.randint(backbone.vocab_size, (1, LENGTH), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def hidden(backbone: Backbone, x_t: Tensor, segments: Tensor | None = None) -> Tensor:
    """Return what the head reads, [L, D]; equal hidden states are equal predictions."""
    return backbone(x_t, torch.full((len(x_t),), 0.5, dtype=torch.float64), segments).hidden[0]


def sight(backbone: Backbone, segments: Tensor | None = None) -> Tensor:
    """Return bool [L, L]: whether the prediction about token i (row) moves when token j (column) does."""
    x_t = some_tokens(backbone)
    before = hidden(backbone, x_t, segments)
    columns = []
    for j in range(LENGTH):
        changed = x_t.clone()
        changed[0, j] = (changed[0, j] + 1) % backbone.vocab_size
        columns.append((hidden(backbone, changed, segments) != before).any(-1))
    return torch.stack(columns, dim=1)


def law_sees_what_it_may(backbone: Backbone) -> Iterator[Finding]:
    """A causal network sees exactly the tokens before the one that it predicts, any other one sees all."""
    seen, first = sight(backbone), 0 if backbone.predicts_first else 1
    past = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(-1)
    may = past if backbone.causal else torch.ones_like(past)
    if backbone.causal:
        peeks = int((seen & ~may)[first:].sum())
        own = int(seen.diagonal()[first:].sum())
        yield at_most(
            "a causal network never sees ahead",
            peeks,
            0.0,
            f"{peeks} predictions move with a token that is not before theirs, {own} of them with the very token that"
            " they predict: the likelihood is a copy",
        )
    blind = int((may & ~seen)[first:].sum())
    yield at_most("nothing visible is hidden", blind, 0.0, f"{blind} pairs of prediction and visible token are cut off")


def law_documents_apart(backbone: Backbone) -> Iterator[Finding]:
    """Documents packed in a block do not see each other; an EOS belongs to the document that it opens."""
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    seen, first = sight(backbone, segments), 0 if backbone.predicts_first else 1
    apart = segments[0][:, None] != segments[0][None, :]
    if backbone.shift:
        apart[:, 3] = False  # the last token of a document, from which the next one begins
    leaks = int((seen & apart)[first:].sum())
    yield at_most(
        "documents do not leak", leaks, 0.0, f"{leaks} predictions move with a token of another document of the block"
    )


def law_annealing_shows_the_past(backbone: Backbone) -> Iterator[Finding]:
    """While attention opens, the past is always visible; nothing else is at ratio 0, everything at ratio 1."""
    if backbone.causal:  # it never opens
        return
    first = 0 if backbone.predicts_first else 1
    past = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(-1)
    for ratio in (0.0, 0.3):
        with backbone.attending(ratio):
            seen = sight(backbone)
        hidden_past = int((past & ~seen)[first:].sum())
        yield at_most(
            "annealing never hides the past", hidden_past, 0.0, f"{hidden_past} past tokens are hidden at ratio {ratio}"
        )
        if ratio == 0.0 and backbone.shift:
            ahead = int((seen & ~past)[first:].sum())
            yield at_most("annealing starts causal", ahead, 0.0, f"{ahead} tokens that come later are seen at ratio 0")
    with backbone.attending(1.0):
        yield holds("annealing ends bidirectional", sight(backbone)[first:].all(), "tokens are hidden at ratio 1")


def law_mask_is_never_predicted(backbone: Backbone) -> Iterator[Finding]:
    """The mask's logit is -inf in every prediction."""
    if backbone.mask_id is None:
        return
    x_t = some_tokens(backbone)
    with torch.no_grad():
        prediction = backbone(x_t, torch.zeros(1, dtype=torch.float64))
        chances = prediction.logits(torch.ones_like(x_t, dtype=torch.bool)).softmax(-1)
    chance = float(chances[:, backbone.mask_id].max())
    yield at_most("the mask is never predicted", chance, 0.0, f"the mask has probability {chance:.3g} in a prediction")


LAWS = [law_sees_what_it_may, law_documents_apart, law_annealing_shows_the_past, law_mask_is_never_predicted]
