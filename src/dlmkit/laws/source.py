"""A source small enough to enumerate, its exact predictor, and every noisy version of it.

Shapes: T times, V vocabulary with the mask, L length, S <= V^L sequences. All in float64.
Time: t = 0 is data, t = 1 is noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from dlmkit.laws.predictions import TablePrediction
from dlmkit.laws.quadrature import Nodes
from dlmkit.parameterizations.base import Parameterization
from dlmkit.parameterizations.score import Score, log_offset
from dlmkit.processes.base import ForwardProcess
from dlmkit.types import Noised

LETTERS = "abcdefgh"


@dataclass(frozen=True)
class Source:
    """A known joint distribution over token sequences.

    Attributes:
        joint: p(x), float64 [V] * L, zero wherever the mask occurs.
    """

    joint: Tensor

    @property
    def length(self) -> int:
        """L."""
        return self.joint.ndim

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.joint.shape[0]

    @property
    def sequences(self) -> Tensor:
        """The x with p(x) > 0, int64 [S, L]."""
        return self.joint.nonzero()

    @property
    def probs(self) -> Tensor:
        """p of `sequences`, [S]."""
        return self.joint[self.joint > 0]

    @property
    def entropy(self) -> float:
        """The least mean of -log p(x), nats per sequence."""
        return float(-(self.probs * self.probs.log()).sum())

    def given(self, prefix: Tensor, end: int) -> Source:
        """The distribution of tokens P .. end - 1, given the first P tokens `prefix`, int64 [P]."""
        joint = self.joint[tuple(prefix)]
        joint = joint.sum(list(range(end - len(prefix), joint.ndim))) if end < self.length else joint
        return Source(joint / joint.sum())

    def marginal(self, process: ForwardProcess, t: Tensor) -> Tensor:
        """The distribution of x_t at t [T], [T] + [V] * L."""
        kernels = channel(process, t)
        return self._through(kernels, list(range(self.length)))

    def loo(self, process: ForwardProcess, t: Tensor) -> list[Tensor]:
        """The exact leave-one-out posteriors p(x_0^i | x_t^{-i}): for each i, [K] + [V] * L whose axis i is x_0^i.

        Under absorbing noise it is p(x_0^i | what is not masked elsewhere), the posterior itself at a masked i.
        """
        kernels = channel(process, t)
        posteriors = []
        for i in range(self.length):
            joint = self._through(kernels, [j for j in range(self.length) if j != i])
            total = joint.sum(i + 1, keepdim=True)
            # A context that cannot occur (a mask under uniform noise) has no posterior; any will do.
            posteriors.append(torch.where(total > 0, joint / total.clamp_min(1e-300), self._somewhere(i)))
        return posteriors

    def exact_predictor(self, process: ForwardProcess, x_t: Tensor, t: Tensor) -> TablePrediction:
        """The exact predictor for x_t [B, L] at t [B]."""
        times, row = t.unique(return_inverse=True)
        tables = []
        for i, posterior in enumerate(self.loo(process, times)):
            by_context = posterior.movedim(i + 1, -1)  # [K] + [V] * (L - 1) + [V]
            context = tuple(x_t[:, j] for j in range(self.length) if j != i)
            tables.append(by_context[(row, *context)])
        return TablePrediction(torch.stack(tables, dim=1).log())

    def exact_score(self, process: ForwardProcess, x_t: Tensor, t: Tensor) -> TablePrediction:
        """The raw output of the exact scores, from their definition: ratios of p_t, enumerated."""
        times, row = t.unique(return_inverse=True)
        marginal = self.marginal(process, times)
        here = marginal[(row, *x_t.unbind(1))]
        tables = []
        for i in range(self.length):
            by_context = marginal.movedim(i + 1, -1)
            context = tuple(x_t[:, j] for j in range(self.length) if j != i)
            tables.append(by_context[(row, *context)] / here[:, None])
        table = torch.stack(tables, dim=1).log()
        offset = log_offset(process.alpha(t), process)
        if offset is not None:  # the scaling of the network's output
            table = table - offset[:, None, None]
        if process.mask_id is not None:
            table[..., process.mask_id] = float("-inf")
        return TablePrediction(table)

    def exact(
        self, parameterization: Parameterization, process: ForwardProcess, x_t: Tensor, t: Tensor
    ) -> TablePrediction:
        """The exact raw output in a parameterization, for x_t [B, L] at t [B]."""
        if isinstance(parameterization, Score):
            return self.exact_score(process, x_t, t)
        log_x0 = self.exact_predictor(process, x_t, t).table.flatten(0, 1)
        at = t[:, None].expand(x_t.shape).flatten()
        raw = parameterization.from_log_x0(log_x0, x_t.flatten(), at, process)
        return TablePrediction(raw.reshape(*x_t.shape, -1))

    def _through(self, kernels: Tensor, positions: list[int]) -> Tensor:
        out = self.joint.expand(kernels.shape[0], *self.joint.shape)
        axes = LETTERS[: self.length]
        for j in positions:
            noisy = axes.replace(axes[j], "z")
            out = torch.einsum(f"k{axes},k{axes[j]}z->k{noisy}", out, kernels)
        return out

    def _somewhere(self, axis: int) -> Tensor:
        others = [i for i in range(self.length) if i != axis]  # a sum over no axis would be one over all
        support = ((self.joint.sum(others) if others else self.joint) > 0).double()
        shape = [1] * (self.length + 1)
        shape[axis + 1] = self.vocab_size
        return (support / support.sum()).reshape(shape)


def random_source(length: int, vocab_size: int, mask_id: int | None, seed: int = 0, sharpness: float = 1.5) -> Source:
    """A joint with strong dependence between positions: log-normal weights, independent for each sequence."""
    generator = torch.Generator().manual_seed(seed)
    weights = (sharpness * torch.randn([vocab_size] * length, dtype=torch.float64, generator=generator)).exp()
    if mask_id is not None:
        for axis in range(length):
            weights.index_fill_(axis, torch.tensor([mask_id]), 0.0)
    return Source(weights / weights.sum())


def channel(process: ForwardProcess, t: Tensor) -> Tensor:
    """q_t(z | x) as matrices [K, V (x), V (z)], straight from the definition alpha_t 1[z = x] + mass_t(z)."""
    alpha, mass = process.coefficients(t)
    eye = torch.eye(process.vocab_size, dtype=torch.float64)
    return alpha[:, None, None] * eye + mass[:, None, :]


def all_sequences(length: int, vocab_size: int) -> Tensor:
    """Every sequence, int64 [V^L, L], in the order of a flattened [V] * L tensor."""
    return torch.tensor(list(product(range(vocab_size), repeat=length)))


def index_of(tokens: Tensor, vocab_size: int) -> Tensor:
    """The place of each sequence [B, L] in `all_sequences`."""
    powers = vocab_size ** torch.arange(tokens.shape[1] - 1, -1, -1)
    return (tokens * powers).sum(-1)


def noised_everywhere(source: Source, process: ForwardProcess, grid: Nodes) -> tuple[Noised, Tensor, Tensor]:
    """Every (time, x_0, x_t) that can occur, as one batch.

    Returns:
        noised: B = number of such triples.
        share: quadrature weight times q_t(x_t | x_0), [B]; sum(share * f) over a given x_0 integrates E f over t.
        sequence: index of x_0 in source.sequences, int64 [B].
    """
    x_0, x_t = source.sequences, all_sequences(source.length, source.vocab_size)
    kernels = channel(process, grid.t)
    chance = torch.ones(len(grid.t), len(x_0), len(x_t), dtype=torch.float64)
    for i in range(source.length):
        chance *= kernels[:, x_0[:, i, None], x_t[None, :, i]]
    k, a, b = (chance > 0).nonzero(as_tuple=True)
    scored = torch.ones(len(k), source.length, dtype=torch.bool)
    noised = Noised(x_0[a], x_t[b], grid.t[k], scored, torch.ones(len(k), dtype=torch.float64))
    return noised, grid.weight[k] * chance[k, a, b], a


def sum_by(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum values [B] over equal index [B] -> [size]."""
    return torch.zeros(size, dtype=values.dtype).index_add_(0, index, values)
