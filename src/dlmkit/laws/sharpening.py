"""Samplers: temperature, top-k, top-p and min-p do what they say to the token that is drawn.

Shapes: V vocabulary (small).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from dlmkit.generation import generate
from dlmkit.laws.denoisers import FixedLogits
from dlmkit.laws.findings import FALSE_ALARM, Finding, at_least, law
from dlmkit.laws.samplers import empty
from dlmkit.laws.statistics import chi_square_p
from dlmkit.parameterizations.next_token import NextToken
from dlmkit.parameterizations.x0 import X0, X0LeaveOneOut
from dlmkit.processes.base import ForwardProcess
from dlmkit.samplers.base import Sampler
from dlmkit.samplers.block_by_block import BlockByBlock
from dlmkit.samplers.drawing import Shaped
from dlmkit.samplers.self_correcting import SelfCorrecting

NUM_SAMPLES = 3_000

SHARPENED: list[tuple[dict[str, float], tuple[float, float, float]]] = [
    ({}, (0.5, 0.3, 0.2)),
    ({"temperature": 0.5}, (25 / 38, 9 / 38, 4 / 38)),
    ({"temperature": 0.0}, (1.0, 0.0, 0.0)),
    ({"top_k": 2}, (5 / 8, 3 / 8, 0.0)),
    ({"top_p": 0.6}, (5 / 8, 3 / 8, 0.0)),
    ({"top_p": 0.45}, (1.0, 0.0, 0.0)),
    ({"min_p": 0.5}, (5 / 8, 3 / 8, 0.0)),
]
"""Settings, and what they make of the probabilities 0.5, 0.3 and 0.2: top-p keeps the token that crosses p."""


PLAIN: dict[str, Any] = {"temperature": 1.0, "top_k": None, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
"""The settings that sharpen nothing, whatever the sampler's own are."""


def _not_sharpened(sampler: Sampler[Any], process: ForwardProcess) -> str | None:
    inside = sampler.within if isinstance(sampler, BlockByBlock) else sampler
    if not isinstance(inside, Shaped):
        return "it has no such settings"
    if not isinstance(inside.parameterization, X0 | X0LeaveOneOut | NextToken):
        return "its network's output is no distribution over tokens"
    if isinstance(inside, SelfCorrecting):
        return "it replaces tokens by likelier ones"
    return None if process.mask_only or not process.has_noise else "a token is drawn from a posterior of the noise"


@law(unless=_not_sharpened)
def law_sharpening(sampler: Sampler[Any], process: ForwardProcess) -> Iterator[Finding]:
    """A text of one token has the prediction's distribution, sharpened as the settings say; others never come out."""
    ids = [token for token in range(process.vocab_size) if token != process.mask_id][:3]
    for settings, expected in SHARPENED:
        logits = torch.full((NUM_SAMPLES, 1, process.vocab_size), float("-inf"))
        logits[..., ids] = torch.tensor([0.5, 0.3, 0.2]).log()
        probs = torch.zeros(process.vocab_size, dtype=torch.float64)
        probs[ids] = torch.tensor(expected, dtype=torch.float64)
        sharp, canvas = sampler.with_settings(**{**PLAIN, **settings}), empty(process, NUM_SAMPLES, 1)
        drawn = generate(FixedLogits(logits), process, sharp, canvas, 3, 5).tokens[:, 0]
        p = chi_square_p(torch.bincount(drawn, minlength=process.vocab_size), probs * NUM_SAMPLES)
        shown = " ".join(f"{key}={value}" for key, value in settings.items()) or "nothing sharpened"
        counts = torch.bincount(drawn, minlength=process.vocab_size)[ids].tolist()
        yield at_least(
            f"sharpened by {shown}" if settings else "drawn from the prediction",
            p,
            FALSE_ALARM,
            f"tokens of probability 0.5, 0.3, 0.2 are drawn {counts} times of {NUM_SAMPLES} with {shown}",
        )


LAWS = [law_sharpening]
"""Of a sampler and a process."""
