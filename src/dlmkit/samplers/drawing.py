"""Drawing tokens: what sharpens a distribution (temperature, top-k, top-p, min-p, repetition), and exact draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dlmkit.ranges import Range, check_fields
from dlmkit.samplers.base import S, Sampler
from dlmkit.tensors import row_of

Temperature = Annotated[float, Range("[0, 1000]", "use 1 for the model's own distribution, 0 for argmax")]
TopK = Annotated[int, Range("[1, 1000000000]", "give the number of tokens to keep, or null for all")] | None
TopP = Annotated[float, Range("(0, 1]", "use 1 to keep every token")]
MinP = Annotated[
    float, Range("[0, 1]", "it is a share of the likeliest token's probability: use 0 to keep every token")
]
Penalty = Annotated[float, Range("[1, 1000]", "use 1 for none, 1.2 for a usual one")]


@dataclass(frozen=True)
class Shaped:
    """The settings that change a network's distribution before a token is drawn, in this order.

    Attributes:
        temperature: in [0, 1000]; below 1 sharper. 0 means argmax.
        top_k: keep the k most likely tokens; ``None`` keeps all.
        top_p: keep the smallest set whose probability reaches top_p, in (0, 1]; the token that crosses it is kept.
        min_p: drop tokens with less than min_p times the probability of the likeliest one, in [0, 1]; 0 keeps all.
        repetition_penalty: at least 1; before all others, the logits of tokens that are decided anywhere in the row are
            divided by it where positive and multiplied where negative (arXiv 1909.05858, section 4.1); 1 for none.
    """

    temperature: Temperature = 1.0
    top_k: TopK = None
    top_p: TopP = 1.0
    min_p: MinP = 0.0
    repetition_penalty: Penalty = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def neutral(self) -> bool:
        """Whether the network's own distribution is drawn from."""
        return self.temperature == self.top_p == self.repetition_penalty == 1.0 and not self.min_p and not self.top_k

    def shaped(self, logits: Tensor, x_t: Tensor, where: Tensor, decided: Tensor) -> Tensor:
        """Return logits [N, V] with excluded tokens at -inf.

        Args:
            logits: [N, V], at the True entries of `where`.
            x_t: int64 [B, L].
            where: bool [B, L].
            decided: bool [B, L], the tokens of x_t that count as repeated.
        """
        if self.repetition_penalty != 1.0:
            logits = penalised(
                logits, tokens_in(x_t, decided, logits.shape[-1])[row_of(where)], self.repetition_penalty
            )
        return self.sharpened(logits)

    def sharpened(self, logits: Tensor) -> Tensor:
        """Return logits [N, V] with excluded tokens at -inf: all but the repetition penalty, which needs the row."""
        if self.temperature == 0:
            return keep_top_k(logits, 1)
        logits = logits / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p < 1.0:
            logits = keep_top_p(logits, self.top_p)
        return keep_min_p(logits, self.min_p) if self.min_p > 0.0 else logits


class ShapedSampler(Shaped, Sampler[S]):
    """A sampler that draws tokens from the network's distribution, changed by the settings of `Shaped`."""

    @property
    def keeps_distribution(self) -> bool:  # type: ignore[override]
        """Whether the network's own distribution is drawn from."""
        return self.neutral


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


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Return logits [N, V] with only the tokens of at least p times the largest probability (arXiv 2407.01082)."""
    least = logits.amax(-1, keepdim=True) + torch.tensor(p, dtype=logits.dtype).log().to(logits.device)
    return logits.masked_fill(logits < least, float("-inf"))


def tokens_in(x_t: Tensor, decided: Tensor, vocab_size: int) -> Tensor:
    """Return bool [B, V]: which tokens are at the `decided` positions (bool [B, L]) of x_t."""
    count = torch.zeros(len(x_t), vocab_size, dtype=torch.int32, device=x_t.device)
    return count.scatter_add_(1, x_t, decided.int()) > 0


def penalised(logits: Tensor, repeated: Tensor, penalty: float) -> Tensor:
    """Return logits [N, V] lowered where `repeated` (bool [N, V]), see `Shaped.repetition_penalty`."""
    return torch.where(repeated, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
