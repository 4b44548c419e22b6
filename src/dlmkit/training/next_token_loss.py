"""An auxiliary autoregressive loss beside the diffusion loss, on the same network."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmkit.types import CAUSAL_ATTENTION, Batch, Denoiser, NetworkInput


def next_token_loss(network: Denoiser, batch: Batch, t: Tensor) -> Tensor:
    """Return the cross-entropy of the scored clean tokens given those before them, summed over the batch: [], nats.

    Token 0 must not be scored where the network does not predict it.

    The network attends to the past alone in this pass; its outputs are aligned as a causal LM's (`shift`).

    Args:
        network: shifted and bidirectional.
        batch: clean tokens.
        t: float64 [B], an input of the network without meaning here.
    """
    prediction = network(NetworkInput(batch.tokens, t, batch.segments, attention=CAUSAL_ATTENTION))
    return prediction.weighted_nll(batch.tokens, batch.scored, torch.ones_like(batch.tokens[batch.scored])).total
