"""The autoregressive baseline: with exact next-token probabilities the nll is -log p(x), without any noise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dlmkit.laws.findings import Finding, at_most, law
from dlmkit.laws.predictions import TablePrediction
from dlmkit.laws.source import Source
from dlmkit.laws.toys import toy_source
from dlmkit.objectives.base import Objective
from dlmkit.processes.base import ForwardProcess
from dlmkit.types import Noised


def not_exact(objective: Objective[Any], process: ForwardProcess) -> str | None:
    """Return why laws of the autoregressive baseline do not apply."""
    return None if objective.exact else "its nll is a bound"


def causal_logits(source: Source, x: Tensor) -> Tensor:
    """Return log p(x^i | x^{<i}) at every position of x (int64 [B, M], M <= L), [B, M, V]."""
    length, tables = x.shape[1], []
    for i in range(length):
        prefix = source.joint.sum(list(range(i + 1, source.length))) if i + 1 < source.length else source.joint
        conditional = prefix / prefix.sum(-1, keepdim=True).clamp_min(1e-300)
        tables.append(conditional[tuple(x[:, j] for j in range(i))].expand(len(x), source.vocab_size))
    return torch.stack(tables, 1).log()


@law(unless=not_exact)
def law_next_token(objective: Objective[Any], process: ForwardProcess) -> Iterator[Finding]:
    """With the exact next-token probabilities the nll is -log p(x)."""
    source = toy_source(process)
    x = source.sequences
    noised = Noised(x, x, torch.ones(len(x)), torch.ones_like(x, dtype=torch.bool), torch.ones(len(x)))
    nll = objective(TablePrediction(causal_logits(source, x)), noised, process).nll.double().sum(-1)
    error = (nll + source.probs.log()).abs()
    worst = int(error.argmax())
    yield at_most(
        "nll = -log p(x)",
        error[worst],
        1e-11,
        f"the nll of {x[worst].tolist()} is {float(nll[worst]):.5g} nats, -log p is"
        f" {-float(source.probs[worst].log()):.5g}",
    )
