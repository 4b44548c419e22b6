"""The records and protocols that cross interfaces between parts.

Axes:

    B   sequences of a batch
    L   positions (tokens) of a sequence
    K   blocks of a sequence, in block diffusion
    C   noisy copies of a sequence that one training step reads
    T   times at which a sequence is evaluated, or steps of a chain in discrete time
    V   vocabulary, mask token included where there is one
    D   hidden size
    N   selected positions, those where a bool [B, L] is True
    P   positions of a clean prefix

Time: t = 0 is data, t = 1 is noise. Losses are nats per token. ``scored`` is the loss mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dlmkit.cache import Cache as Cache
from dlmkit.weighted import ClosedForm as ClosedForm
from dlmkit.weighted import WeightedNLL as WeightedNLL
from dlmkit.weighted import WeightedValues as WeightedValues


@dataclass  # not frozen: Lightning refuses to look into frozen records for what bf16-true and 64-true convert
class Batch:
    """Clean token sequences as the data pipeline delivers them.

    Attributes:
        tokens: x_0, int64 [B, L].
        scored: bool [B, L], the loss mask; noise may change these positions. The others are given.
        segments: int64 [B, L], document index inside the sequence, non-decreasing along L; ``None`` without
            intra-document attention masks.
    """

    tokens: Tensor
    scored: Tensor
    segments: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on `device`; a GPU gets a pinned batch while the program goes on."""
        on_gpu = torch.device(device).type == "cuda"
        segments = None if self.segments is None else self.segments.to(device, non_blocking=on_gpu)
        scored = self.scored.to(device, non_blocking=on_gpu)
        return Batch(self.tokens.to(device, non_blocking=on_gpu), scored, segments)

    def pin_memory(self) -> Batch:
        """Return the batch in memory that a GPU reads by itself; DataLoader calls this."""
        segments = None if self.segments is None else self.segments.pin_memory()
        return Batch(self.tokens.pin_memory(), self.scored.pin_memory(), segments)

    def __len__(self) -> int:
        return self.tokens.shape[0]


class TimeDraw(NamedTuple):
    """Times with their importance weights.

    Attributes:
        t: float64, in (0, 1].
        weight: like t, 1 / density of the time sampler at t: the mean of ``weight * f(t)`` is the integral of f.
    """

    t: Tensor
    weight: Tensor

    def by_block(self, num_blocks: int) -> TimeDraw:
        """Return the draw [G * K] as [G, K], for the K = `num_blocks` blocks of each of G sequences; K = 1: unchanged.

        Block k of sequence g has entry k * G + g, so that a stratified draw is stratified within each sequence.
        """
        if num_blocks == 1:
            return self
        return TimeDraw(*(values.view(num_blocks, -1).t() for values in self))


@dataclass(frozen=True)
class Noised:
    """Clean sequences, their noisy versions, and the time of the noise. Here B counts rows: C copies of each sequence.

    Attributes:
        x_0: clean tokens, int64 [B, L].
        x_t: noisy tokens, int64 [B, L]; equal to ``x_0`` wherever ``scored`` is False.
        t: time, float64 [B], in [0, 1]; or [B, K], where each of the K equal blocks of a sequence has its own.
        scored: bool [B, L], the loss mask.
        weight: float64, like t: the importance weight of t, see :class:`TimeDraw`.
        segments: int64 [B, L], see :class:`Batch`.
        noise_rate: float64, like t: the rate at which scored tokens were noised, where a corruption fixes it; ``None``
            stands for the process's own 1 - alpha(t).
    """

    x_0: Tensor
    x_t: Tensor
    t: Tensor
    scored: Tensor
    weight: Tensor
    segments: Tensor | None = None
    noise_rate: Tensor | None = None


@dataclass(frozen=True)
class Context:
    """Clean tokens beside the noisy ones, so that each block is predicted from the clean blocks before it.

    Attributes:
        tokens: clean tokens, int64 [B, L] like x_t; with `last` the last block of it is not read.
        block_size: tokens per block; only with `last` may the last block be shorter.
        last: whether only the last block is noisy and predicted (in generation); the blocks before it are clean.
        read: bool [B, L], the predictions that will be read, where these are not all: any of the others may be wrong.
    """

    tokens: Tensor
    block_size: int
    last: bool = False
    read: Tensor | None = None


@dataclass(frozen=True)
class Attention:
    """How much of the future a bidirectional network attends to in one pass (attention-mask annealing).

    Attributes:
        ratio: share of the (query, future key) pairs that attend, in [0, 1]; 0 is causal, 1 bidirectional.
        shape: how these pairs are chosen, see :data:`dlmkit.backbones.attention.SHAPES`.
        seed: of the choice.
    """

    ratio: float = 1.0
    shape: str = "bernoulli"
    seed: int = 0


FULL_ATTENTION = Attention()
CAUSAL_ATTENTION = Attention(ratio=0.0)


@dataclass(frozen=True)
class NetworkInput:
    """Everything that one network call depends on.

    Attributes:
        x_t: noisy tokens, int64 [B, L]; with a `cache` those that come after its prefix.
        t: float64 [B]; with a `context` of K blocks it may be [B, K].
        segments: int64 [B, L], documents that do not attend to each other; ``None`` for one document, and always with
            a `cache`, whose tokens have no segments.
        context: clean tokens for block diffusion in training.
        attention: share of the future that is attended to; a causal network ignores it.
        cache: what comes before x_t, and perhaps after it, from `Denoiser.prefill` or `Denoiser.freeze`.
        given: bool [B, L], tokens of x_t that a sampler was given; only guidance reads it.
    """

    x_t: Tensor
    t: Tensor
    segments: Tensor | None = None
    context: Context | None = None
    attention: Attention = FULL_ATTENTION
    cache: Cache | None = None
    given: Tensor | None = None

    def select(self, rows: Tensor) -> NetworkInput:
        """Return the input of some rows, int64 [R]; not for an input with a context."""
        assert self.context is None
        return NetworkInput(
            x_t=self.x_t[rows],
            t=self.t[rows],
            segments=None if self.segments is None else self.segments[rows],
            attention=self.attention,
            cache=None if self.cache is None else self.cache.select(rows),
            given=None if self.given is None else self.given[rows],
        )


class Prediction(Protocol):
    """A network's prediction, whose logits are evaluated at the positions that a caller selects."""

    def logits(self, where: Tensor) -> Tensor:
        """Return float32 logits [N, V] at the N True entries of `where` (bool [B, L]), the mask token at -inf."""

    def token_log_prob(self, tokens: Tensor, where: Tensor) -> Tensor:
        """Return log p(tokens) [N] at the True entries of `where`, never building [B, L, V]; tokens is int64 [B, L]."""

    def weighted_nll(self, tokens: Tensor, where: Tensor, weight: Tensor) -> WeightedNLL:
        """Return -log p(tokens) at the True entries of `where`, and its sum with `weight` [N].

        The gradient of the sum is cheaper than that of anything else that is computed from the values.
        """

    def map_logits(self, function: Callable[..., Tensor], where: Tensor, *arguments: Tensor) -> Tensor:
        """Return [N]: function(logits [n, V], *arguments [n]) -> [n] on chunks of the True entries of `where`.

        The caller gives each of `arguments` as [N], in the order of tensor[where]; the function must treat rows apart.
        """

    def weighted(self, form: ClosedForm, where: Tensor, weight: Tensor, *arguments: Tensor) -> WeightedValues:
        """Return form(logits, *arguments), and the same times `weight`, differentiable; the rest as in `map_logits`.

        `weight` and `arguments`, [N] each, get no gradients. The gradient is made for a sum of the weighted values,
        times one number; any other loss of them is right and takes longer.
        """

    def in_float32(self) -> Prediction:
        """Return the same prediction with logits from float32 products, where autocast is off.

        A network that trains in bf16 or float16 is evaluated like this.
        """


class Denoiser(Protocol):
    """A network as objectives and samplers call it; every backbone is one.

    :class:`dlmkit.prefix.RereadsPrefix` implements `prefill` for a denoiser that keeps no activations.
    """

    @property
    def supports_cache(self) -> bool:
        """Whether `prefill` and `freeze` keep activations; otherwise a call with a cache reads the tokens again."""

    def __call__(self, inputs: NetworkInput) -> Prediction:
        """Return the prediction at the positions of `inputs.x_t`."""

    def prefill(self, tokens: Tensor, block_size: int | None = None, cache: Cache | None = None) -> Cache:
        """Return the cache of a clean prefix, for `NetworkInput.cache`.

        Args:
            tokens: int64 [B, P], P >= 0.
            block_size: tokens per block in block diffusion, where the prefix is whole blocks and each later call is for
                one block at most; ``None`` otherwise. With a `cache` its block size holds.
            cache: of what comes before `tokens`; ``None`` at the start of the text.
        """

    def freeze(self, tokens: Tensor, t: Tensor, start: int, stop: int, around: str) -> Cache:
        """Return a cache of what is around a run of noisy tokens, at this state; x_t of later calls is the run.

        What they predict is right at this state, and later unless the cache is `exact` an approximation, since what is
        kept learns of no changes (arXiv 2505.22618).

        Args:
            tokens: the whole text, int64 [B, L], with its times `t`, float64 [B].
            start, stop: the run, tokens [start, stop).
            around: "prefix": what is before the run is kept, and stop = L; "both": what is after it too.

        Raises:
            ValueError: there is no such run, or the denoiser is behind a prefix with exact caches.
        """


@dataclass(frozen=True)
class TokenLoss:
    """What an objective returns, one value per position, nats, zero where nothing is scored.

    Attributes:
        loss: float [B, L], differentiable; what is minimised (may be re-weighted or clipped).
        nll: float [B, L], detached, `Noised.weight` included unless the objective is exact. Its sum over L, and over
            the copies of a sequence, estimates the diffusion term of the bound without bias (exact: it is
            -log p(x_0)); evaluation uses it alone.
        fused: scalar, the sum of `loss` over B and L whose gradient the objective had computed with it; ``None`` where
            that comes from `loss`.
    """

    loss: Tensor
    nll: Tensor
    fused: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """The sum of `loss`, a scalar; training differentiates it, which may cost less than by way of `loss`."""
        return self.loss.sum() if self.fused is None else self.fused


@dataclass(frozen=True)
class StepOutput:
    """A micro-batch of training after its forward pass, for parts that learn from it (see `Part.collect`).

    Attributes:
        draw: times as the time sampler drew them, [B] or [B, K]; the loss contains the weight as a factor.
        loss: of each token, nats, [B, L], detached, weights included; the mean over the copies of a sequence (the
            sum over `noised`, whose weights are divided by C); zero where nothing is scored.
        noised: the C * B noisy sequences.
        scored: bool [B, L].
    """

    draw: TimeDraw
    loss: Tensor
    noised: Noised
    scored: Tensor


@dataclass(frozen=True)
class Canvas:
    """The tokens that a sampler fills in.

    Attributes:
        tokens: int64 [B, L]; what is not fixed is overwritten.
        fixed: bool [B, L]; given tokens (prompt, infilling context), which never change.
    """

    tokens: Tensor
    fixed: Tensor

    @property
    def num_free(self) -> Tensor:
        """Positions of each row that are not fixed, int64 [B]."""
        return (~self.fixed).sum(-1)
