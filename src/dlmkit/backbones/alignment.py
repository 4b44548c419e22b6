"""The alignment of inputs and outputs: shift, BOS, and which document an input position belongs to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Alignment:
    """Which output of a network predicts which token.

    Without ``shift`` the output at position i predicts token i. With it the network keeps the alignment of a causal LM:
    the output at input position i - 1 predicts token i (arXiv 2410.17891, section 3.2). A prepended BOS gives token 0 a
    prediction too; without it token 0 is given.

    Attributes:
        causal: whether the network attends to the past alone.
        shift: whether outputs are aligned as in a causal LM.
        bos_id: id prepended to every sequence when ``shift``; ``None``: nothing is prepended.
    """

    causal: bool
    shift: bool
    bos_id: int | None

    @property
    def has_bos(self) -> bool:
        """Whether a BOS is prepended."""
        return self.shift and self.bos_id is not None

    @property
    def predicts_first(self) -> bool:
        """Whether token 0 is predicted (not so for a shifted network without BOS)."""
        return not self.shift or self.bos_id is not None

    @property
    def extra_positions(self) -> int:
        """How many positions more than tokens the network reads: 1 for a BOS beside all L tokens."""
        return int(self.has_bos and not self.causal)

    def ids(self, tokens: Tensor) -> Tensor:
        """Return the input ids int64 [B, M] for tokens [B, L], BOS prepended where there is one.

        M is L + 1 with BOS and full attention, else L: a causal network with BOS does without the last token.
        """
        if not self.has_bos:
            return tokens
        assert self.bos_id is not None
        ids = torch.cat([tokens.new_full((len(tokens), 1), self.bos_id), tokens], dim=1)
        return ids[:, :-1] if self.causal else ids  # no prediction of a causal network depends on the last token

    def segments(self, segments: Tensor | None) -> Tensor | None:
        """Return the document of each input position, int64 [B, M], for those of the tokens [B, L].

        An input position belongs to the document of the token that its output predicts: the first token of a document
        is predicted at the EOS that ends the document before, so this EOS must not attend to the document that it ends.
        """
        if segments is None or not self.shift:
            return segments
        if self.bos_id is None:
            return torch.cat([segments[:, 1:], segments[:, -1:]], dim=1)
        return segments if self.causal else torch.cat([segments, segments[:, -1:]], dim=1)

    def outputs(self, hidden: Tensor, length: int) -> Tensor:
        """Return hidden states [B, L, D] whose row i predicts token i, from the network's outputs [B, M, D]."""
        if not self.shift or self.bos_id is not None:
            return hidden[:, :length]
        # Row 0 has no prediction; it is never scored, and repeating it keeps the shape.
        return torch.cat([hidden[:, :1], hidden[:, :-1]], dim=1)
