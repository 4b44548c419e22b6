"""Drawing tokens: temperature, top-k and top-p, and exact categorical draws."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from dlmkit.ranges import Range, checked

Temperature = Annotated[float, Range("[0, 1000]", "use 1 for the model's own distribution, 0 for argmax")]
TopK = Annotated[int, Range("[1, 1000000000]", "give the number of tokens to keep, or null for all")] | None
TopP = Annotated[float, Range("(0, 1]", "use 1 to keep every token")]


class Filter:
    """Sharpens a distribution: temperature first, then top-k, then top-p.

    Args:
        temperature: in [0, 1000]; below 1 sharper. 0 means argmax.
        top_k: keep the k most likely tokens; ``None`` keeps all.
        top_p: keep the smallest set whose probability reaches top_p, in (0, 1]; the token that crosses it is kept.

    Raises:
        ValueError: a value outside of its range.
    """

    @checked
    def __init__(self, temperature: Temperature, top_k: TopK, top_p: TopP) -> None:
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p

    def __call__(self, logits: Tensor) -> Tensor:
        """Return filtered logits [N, V], excluded tokens at -inf."""
        if self.temperature == 0:
            return keep_top_k(logits, 1)
        logits = logits / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p < 1.0:
            logits = keep_top_p(logits, self.top_p)
        return logits


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Return logits [N, V] with all but the k largest of each row at -inf (exactly k, ties broken by id)."""
    values, ids = logits.topk(min(k, logits.shape[-1]), dim=-1)
    return torch.full_like(logits, float("-inf")).scatter_(-1, ids, values)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Return logits [N, V] with only the smallest set of tokens whose probability reaches p."""
    ordered, ids = logits.sort(dim=-1, descending=True)
    probs = ordered.softmax(-1)
    before = probs.cumsum(-1) - probs  # the crossing token has less than p before it, so it stays
    return torch.full_like(logits, float("-inf")).scatter_(-1, ids, ordered.masked_fill(before >= p, float("-inf")))


def categorical(probs: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one id per row, int64 [N], from unnormalised probabilities [N, V].

    An exponential race in float64: argmax of p / E with E ~ Exp(1) has exactly the right law, and unlike Gumbel noise
    made from a float32 uniform it does not truncate the tail.
    """
    race = torch.empty(probs.shape, dtype=torch.float64, device=probs.device).exponential_(generator=generator)
    return (probs.double() / race.clamp_min_(torch.finfo(torch.float64).tiny)).argmax(-1)
