"""The seam of networks: noisy tokens in, a prediction about clean tokens out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dlmkit.backbones.attention import Mask, annealed_visibility, attention_mask
from dlmkit.backbones.blocks import block_layout
from dlmkit.backbones.prediction import Prediction
from dlmkit.types import Context


@dataclass(frozen=True)
class Reading:
    """What a network's trunk takes in.

    Attributes:
        ids: int64 [B, M].
        positions: int64 [M]; 0 .. M - 1, or with clean context those of the text, some of them twice.
        t: float64 [B]; with clean context [B, M], 0 where a token is context.
        mask: who sees whom, [1 or B, 1, M, M], or ``None`` (see `attention_mask`). With clean context, and neither
            documents nor annealing, the same object at every step.
        outputs: int64 [L], which output speaks about each token, or ``None`` where `Backbone.align` knows.
    """

    ids: Tensor
    positions: Tensor
    t: Tensor
    mask: Mask | None
    outputs: Tensor | None


class Backbone(nn.Module, ABC):
    """A network that reads x_t [B, L] and speaks about every x_0[i].

    With ``shift`` the network keeps a causal LM's alignment: its output at input position i - 1 speaks about token i
    (arXiv 2410.17891, section 3.2). A prepended BOS gives token 0 a predictor too; without it token 0 is context.

    Args:
        vocab_size: V, mask token included.
        mask_id: id of the mask token, or ``None`` where the process has none.
        causal: hide the future (the autoregressive baseline).
        shift: whether outputs are aligned as in a causal LM.
        bos_id: id prepended to every block when ``shift``; ``None``: nothing is prepended.
    """

    def __init__(self, vocab_size: int, mask_id: int | None, causal: bool, shift: bool, bos_id: int | None) -> None:
        super().__init__()
        check_token_id("mask_id", mask_id, vocab_size)
        check_token_id("bos_id", bos_id, vocab_size)
        if causal and not shift:
            raise ValueError(
                "causal=true with shift=false: a causal network sees token i at position i and would copy it;"
                " set backbone.shift=true"
            )
        self.saves_frozen = True
        self.vocab_size = vocab_size
        self.mask_id = mask_id
        self.causal = causal
        self.shift = shift
        self.bos_id = bos_id
        self.attention_ratio = 1.0
        self.attention_shape = "bernoulli"
        self.attention_seed = 0

    @abstractmethod
    def forward(
        self, x_t: Tensor, t: Tensor, segments: Tensor | None = None, context: Context | None = None
    ) -> Prediction:
        """Return the prediction for x_t (int64 [B, L]) at time t (float64 [B]); row i is about token i.

        With a `context` each of its K blocks of x_t is predicted from itself and the clean blocks before it, and t may
        be [B, K].
        """

    @abstractmethod
    def flops_per_token(self, length: int, head_fraction: float) -> float:
        """Return forward + backward floating-point operations per token of a block of `length`.

        Args:
            length: L.
            head_fraction: share of the positions at which the objective runs the head, in [0, 1].
        """

    @property
    @abstractmethod
    def max_length(self) -> int:
        """The longest block L, in tokens, that the network reads (a prepended BOS not counted)."""

    def check_length(self, length: int) -> None:
        """Raise ValueError when blocks of `length` tokens are too long for the network."""
        if length > self.max_length:
            raise ValueError(
                f"length {length} is more than this backbone's {self.max_length} positions for tokens: set length to"
                f" at most {self.max_length}, or take a backbone with more positions"
            )

    def sharding_units(self) -> list[nn.Module]:
        """Return the layers that are sharded one by one; none unless a backbone has any."""
        return []

    def weights_to_save(self) -> set[str]:
        """Return the names of the weights that a checkpoint holds: all, or with adapters those that are trained."""
        if self.saves_frozen:
            return set(self.state_dict())
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    @property
    def extra_positions(self) -> int:
        """How many positions more than tokens the network reads: 1 for a BOS that stands beside all tokens."""
        return int(self.shift and self.bos_id is not None and not self.causal)

    @property
    def num_params(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def predicts_first(self) -> bool:
        """Whether token 0 has a predictor (false for a shifted network without BOS)."""
        return not self.shift or self.bos_id is not None

    def set_attention(self, ratio: float, seed: int, shape: str = "bernoulli") -> None:
        """Let the network see the causal triangle plus a share `ratio` of the rest (annealing).

        Args:
            ratio: in [0, 1]; 0 is causal, 1 bidirectional.
            seed: of the draw.
            shape: see :data:`dlmkit.backbones.attention.SHAPES`.
        """
        self.attention_ratio = ratio
        self.attention_shape = shape
        self.attention_seed = seed

    @contextmanager
    def attending(self, ratio: float) -> Iterator[None]:
        """See a share `ratio` of the future for a while: 0 to be asked for the next token, 1 to generate."""
        before = self.attention_ratio, self.attention_seed, self.attention_shape
        self.set_attention(ratio, 0)
        try:
            yield
        finally:
            self.set_attention(*before)

    def read(self, x_t: Tensor, segments: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return what the network reads for x_t: (ids [B, M], segments [B, M]), BOS prepended where there is one.

        An input position belongs to the document of the token that its output predicts: the EOS that ends one document
        is what the first token of the next is predicted from, so it must not see the document that it ends.
        """
        if not self.shift:
            return x_t, segments
        if self.bos_id is None:
            return x_t, None if segments is None else torch.cat([segments[:, 1:], segments[:, -1:]], dim=1)
        ids = torch.cat([torch.full_like(x_t[:, :1], self.bos_id), x_t], dim=1)
        if self.causal:  # nobody looks at the last token
            return ids[:, :-1], segments
        return ids, None if segments is None else torch.cat([segments, segments[:, -1:]], dim=1)

    def reading(self, x_t: Tensor, t: Tensor, segments: Tensor | None, context: Context | None) -> Reading:
        """Return what the trunk takes in for x_t (int64 [B, L]) at t, see `forward`."""
        ids, segments = self.read(x_t, segments)
        width, device = ids.shape[1], ids.device
        visible = self.visibility(width, device)
        # One block has no context: the plain pass, with the plain kernel.
        if context is None or context.block_size >= x_t.shape[1]:
            seen = attention_mask(width, device, causal=self.causal, segments=segments, visible=visible)
            t = t if t.ndim == 1 else t[:, 0]
            at = torch.arange(width, device=device)
            return Reading(ids, at, t, None if seen is None else Mask(seen, at), None)
        has_bos = self.shift and self.bos_id is not None  # without a shift none is prepended
        layout = block_layout(x_t.shape[1], context.block_size, self.shift, has_bos, context.last, device)
        at = layout.positions
        seen = layout.mask.visible
        if visible is not None:  # annealing: of what a causal network would not see, only what was drawn
            seen = seen & ((at[None, :] <= at[:, None]) | visible[at][:, at])
        if segments is not None:
            seen = seen & (segments[:, at, None] == segments[:, None, at])[:, None]
        mask = layout.mask if seen is layout.mask.visible else Mask(seen, at)
        clean_ids, _ = self.read(context.tokens, None)
        ids = torch.where(layout.clean, clean_ids[:, at], ids[:, at])
        times = t[:, None].expand(ids.shape) if t.ndim == 1 else t[:, layout.blocks]
        return Reading(ids, at, times.masked_fill(layout.is_context, 0.0), mask, layout.outputs)

    def aligned(self, hidden: Tensor, reading: Reading, length: int) -> Tensor:
        """Return hidden states [B, L, D] whose row i speaks about token i, from the outputs [B, M, D] for `reading`."""
        return self.align(hidden, length) if reading.outputs is None else hidden[:, reading.outputs]

    def align(self, hidden: Tensor, length: int) -> Tensor:
        """Return hidden states [B, L, D] whose row i speaks about token i, from the network's outputs [B, M, D]."""
        if not self.shift or self.bos_id is not None:
            return hidden[:, :length]
        # Row 0 has no predictor; it is never scored, and repeating it keeps the shape.
        return torch.cat([hidden[:, :1], hidden[:, :-1]], dim=1)

    def visibility(self, length: int, device: torch.device) -> Tensor | None:
        """Return this step's annealing draw, bool [M, M], or ``None`` when annealing is over."""
        if self.causal:
            return None
        return annealed_visibility(length, self.attention_ratio, self.attention_seed, device, self.attention_shape)


def check_token_id(name: str, token_id: int | None, vocab_size: int) -> None:
    """Raise ValueError unless `token_id` is ``None`` or inside the vocabulary."""
    if token_id is not None and not 0 <= token_id < vocab_size:
        raise ValueError(
            f"{name} {token_id} is outside the vocabulary of {vocab_size} tokens (ids 0 to {vocab_size - 1}):"
            " take the id from the tokenizer, or enlarge vocab_size to make room for a new row"
        )
