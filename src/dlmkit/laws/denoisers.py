"""Denoisers without a network: the exact prediction of a source, and logits that are given.

Shapes: B batch, L length, V vocabulary (small).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlmkit.laws.autoregressive import causal_logits
from dlmkit.laws.predictions import TablePrediction, read_as
from dlmkit.laws.source import Source
from dlmkit.parameterizations.base import Parameterization
from dlmkit.parameterizations.next_token import NextToken
from dlmkit.prefix import RereadsPrefix, TokenPrefix, expand_prefix
from dlmkit.processes.base import ForwardProcess
from dlmkit.samplers.base import Sampler
from dlmkit.types import Denoiser, NetworkInput


class Exact(RereadsPrefix):
    """A denoiser with the exact p(x_0^i | x_t^{-i}) of a source, in any parameterization.

    Behind a prefix in block diffusion x_t is one block, predicted given the clean tokens before it.

    Args:
        source: the data.
        process: the noise.
        parameterization: of the output; scores are made from the exact prediction, as at t = 1 ratios of p_t are 0 / 0.
    """

    def __init__(self, source: Source, process: ForwardProcess, parameterization: Parameterization) -> None:
        self.source, self.process, self.parameterization = source, process, parameterization

    def __call__(self, inputs: NetworkInput) -> TablePrediction:
        """Return the prediction at the positions of x_t [B, L]."""
        cache = inputs.cache
        if isinstance(cache, TokenPrefix) and cache.block_size is not None:
            return self._behind(cache.tokens, inputs.x_t, inputs.t)
        given = 0 if cache is None else cache.length
        asked = slice(given, given + inputs.x_t.shape[1])
        x_t, t = expand_prefix(inputs).x_t, inputs.t
        exact = self.source.exact_predictor(self.process, x_t, t)
        everywhere = torch.ones_like(x_t, dtype=torch.bool)
        raw = read_as(self.parameterization, exact, self.process, x_t, t).logits(everywhere)
        return TablePrediction(raw.reshape(*x_t.shape, -1)[:, asked])

    def _behind(self, prefixes: Tensor, x_t: Tensor, t: Tensor) -> TablePrediction:
        table = torch.zeros(*x_t.shape, self.source.vocab_size, dtype=torch.float64)
        end = prefixes.shape[1] + x_t.shape[1]
        for prefix in prefixes.unique(dim=0) if prefixes.shape[1] else prefixes[:1]:
            data, here = self.source.given(prefix, end), (prefixes == prefix).all(-1)
            block = Exact(data, self.process, self.parameterization)
            table[here] = block(NetworkInput(x_t[here], t[here])).table
        return TablePrediction(table)


class ExactNext(RereadsPrefix):
    """A causal denoiser with the exact p(x^i | x^{<i}) of a source; the token at i itself is not read."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __call__(self, inputs: NetworkInput) -> TablePrediction:
        """Return the prediction at the positions of x_t [B, M]."""
        given = 0 if inputs.cache is None else inputs.cache.length
        logits = causal_logits(self.source, expand_prefix(inputs).x_t)
        return TablePrediction(logits[:, given : given + inputs.x_t.shape[1]])


def exact_denoiser(sampler: Sampler[Any], process: ForwardProcess, source: Source) -> Denoiser:
    """Return the exact network in the sampler's parameterization."""
    if is_causal(sampler):
        return ExactNext(source)
    return Exact(source, process, sampler.parameterization)


def is_causal(sampler: Sampler[Any]) -> bool:
    """Return whether the sampler is for an autoregressive network."""
    return isinstance(sampler.parameterization, NextToken)


class FixedLogits(RereadsPrefix):
    """A denoiser whose logits [B, L, V] do not depend on its input; fewer rows have the first ones."""

    def __init__(self, logits: Tensor) -> None:
        self.given = logits

    def __call__(self, inputs: NetworkInput) -> TablePrediction:
        """Return the logits at the positions of x_t."""
        start = 0 if inputs.cache is None else inputs.cache.length
        return TablePrediction(self.given[: len(inputs.x_t), start : start + inputs.x_t.shape[1]])
