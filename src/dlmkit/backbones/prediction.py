"""What a network says about the clean tokens, evaluated only where somebody asks.

A backbone hands over hidden states and its output head; the head is a [D, V] product and, with 50k tokens, the most
expensive part of a small model. Objectives ask for it at the positions they score (the masked ones, for absorbing
noise), so [B, L, V] is never built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**24
"""Logits held at a time (64 MiB in float32): large enough to keep the matrix product efficient, small enough to be reused."""


@dataclass(frozen=True)
class Head:
    """An output head: logits = cap * tanh(scale * (hidden @ weight.T + bias) / cap).

    Attributes:
        weight: [V, D], often tied to the input embedding.
        bias: [V] or ``None``.
        scale: factor on the logits (Granite divides by ``logits_scaling``, Cohere multiplies by ``logit_scale``).
        softcap: the bound of Gemma 2's tanh, or ``None``.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return logits [N, V] in float32 for hidden [N, D]."""
        logits = F.linear(
            hidden, self.weight.to(hidden.dtype), None if self.bias is None else self.bias.to(hidden.dtype)
        )
        return self.transform(logits.float())

    def transform(self, logits: Tensor) -> Tensor:
        """Apply scale and soft cap, in place, to raw logits."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    @property
    def is_linear(self) -> bool:
        """Whether the fused log-probability applies (no soft cap)."""
        return self.softcap is None


class Prediction:
    """Hidden states plus head, as a :class:`dlmkit.types.Predictor`.

    Args:
        hidden: [B, L, D]; row i speaks about token i, whatever alignment the network has inside.
        head: the output head.
        mask_id: id whose logit is -inf in every prediction (a clean token is never the mask), or ``None``.
    """

    def __init__(self, hidden: Tensor, head: Head, mask_id: int | None) -> None:
        self.hidden = hidden
        self.head = head
        self.mask_id = mask_id

    @property
    def vocab_size(self) -> int:
        """V, mask token included."""
        return self.head.weight.shape[0]

    def logits(self, where: Tensor) -> Tensor:
        """Return float32 logits [N, V] at the True entries of `where` (bool [B, L]), the mask token at -inf."""
        return self._logits(self.hidden[where])

    def token_log_prob(self, tokens: Tensor, where: Tensor) -> Tensor:
        """Return log p(tokens), float32 [N], at the True entries of `where`; the head runs there alone, in chunks.

        Args:
            tokens: int64 [B, L].
            where: bool [B, L].
        """
        targets = tokens[where]
        if self.head.is_linear:
            head = self.head
            return _FusedLogProb.apply(self.hidden[where], head.weight, head.bias, targets, self.mask_id, head.scale)

        def pick(logits: Tensor, target: Tensor) -> Tensor:
            return logits.log_softmax(-1).gather(-1, target[:, None])[:, 0]

        return self.map_logits(pick, where, targets)

    def map_logits(self, function: Callable[..., Tensor], where: Tensor, *arguments: Tensor) -> Tensor:
        """Return function(logits [n, V], *arguments [n]) -> [n], over the True entries of `where`, in chunks.

        With gradients on, each chunk is recomputed in the backward pass, so memory stays at one chunk.
        """
        hidden = self.hidden[where]
        rows = chunk_rows(self.vocab_size)
        if hidden.shape[0] <= rows:
            return function(self._logits(hidden), *arguments)

        def one_chunk(hidden: Tensor, *arguments: Tensor) -> Tensor:
            return function(self._logits(hidden), *arguments)

        pieces = zip(hidden.split(rows), *(argument.split(rows) for argument in arguments), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([one_chunk(*piece) for piece in pieces])
        return torch.cat([checkpoint(one_chunk, *piece, use_reentrant=False) for piece in pieces])

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.head(hidden)
        if self.mask_id is None:
            return logits
        forbidden = torch.zeros(self.vocab_size, dtype=torch.bool, device=logits.device)
        forbidden[self.mask_id] = True
        return logits.masked_fill(forbidden, float("-inf"))


def chunk_rows(vocab_size: int) -> int:
    """How many rows of logits are held at once."""
    return max(64, CHUNK_ELEMENTS // vocab_size)


class _FusedLogProb(torch.autograd.Function):
    """log softmax(hidden @ weight.T + bias)[tokens] with one reused buffer of logits, recomputed in the backward pass.

    Against autograd over F.cross_entropy this saves the stored logits, their softmax and their gradient: on a CPU the
    fresh pages of three [N, V] tensors cost more time than the second matrix product.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        mask_id: int | None,
        scale: float,
    ) -> Tensor:
        device_type = hidden.device.type
        dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else hidden.dtype
        log_prob = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        log_sum = torch.empty_like(log_prob)
        with torch.autocast(device_type, enabled=False):
            logits_of = _BufferedLogits(hidden, weight.to(dtype), bias, mask_id, scale, dtype)
            for rows, logits in logits_of.chunks():
                picked = logits.gather(-1, tokens[rows, None])[:, 0]
                peak = logits.amax(-1, keepdim=True)
                log_sum[rows] = logits.sub_(peak).exp_().sum(-1).log_() + peak[:, 0]
                log_prob[rows] = picked - log_sum[rows]
        ctx.save_for_backward(hidden, weight, bias, tokens, log_sum)
        ctx.mask_id, ctx.scale, ctx.dtype = mask_id, scale, dtype
        return log_prob

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        hidden, weight, bias, tokens, log_sum = ctx.saved_tensors
        working = weight.to(ctx.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        logits_of = _BufferedLogits(hidden, working, bias, ctx.mask_id, ctx.scale, ctx.dtype)
        for rows, logits in logits_of.chunks():
            delta = logits.sub_(log_sum[rows, None]).exp_().mul_(-grad[rows, None])
            delta.scatter_add_(-1, tokens[rows, None], grad[rows, None].float())
            if ctx.scale != 1.0:
                delta.mul_(ctx.scale)
            low = delta.to(ctx.dtype)
            grad_hidden[rows] = (low @ working).to(hidden.dtype)
            if ctx.dtype == torch.float32:
                grad_weight.addmm_(low.t(), hidden[rows])
            else:
                grad_weight += low.t() @ hidden[rows].to(ctx.dtype)
            if grad_bias is not None:
                grad_bias += delta.sum(0)
        grad_bias = None if bias is None or grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight.to(weight.dtype), grad_bias, None, None, None


class _BufferedLogits:
    """Masked float32 logits, chunk by chunk, in one buffer that the next chunk overwrites."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mask_id: int | None,
        scale: float,
        dtype: torch.dtype,
    ) -> None:
        self.hidden, self.weight, self.bias = hidden, weight, bias
        self.mask_id, self.scale, self.dtype = mask_id, scale, dtype

    def chunks(self) -> Any:
        """Yield (slice of rows, logits [n, V])."""
        num_rows, vocab_size = self.hidden.shape[0], self.weight.shape[0]
        step = min(num_rows, chunk_rows(vocab_size))
        buffer = torch.empty(step, vocab_size, dtype=self.dtype, device=self.hidden.device)
        for start in range(0, num_rows, max(step, 1)):
            rows = slice(start, min(start + step, num_rows))
            out = buffer[: rows.stop - rows.start]
            torch.mm(self.hidden[rows].to(self.dtype), self.weight.t(), out=out)
            logits = out.float() if self.dtype in (torch.bfloat16, torch.float16) else out
            if self.bias is not None:
                logits.add_(self.bias)
            if self.scale != 1.0:
                logits.mul_(self.scale)
            if self.mask_id is not None:
                logits[:, self.mask_id] = float("-inf")
            yield rows, logits
