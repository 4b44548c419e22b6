"""Blocks from left to right, another sampler inside each."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from dlmkit.parameterizations.base import Parameterization
from dlmkit.processes.base import ForwardProcess
from dlmkit.samplers.base import Reading, Sampler, Step, Stepped
from dlmkit.types import Cache, Canvas, Denoiser

MOST_STEPS = 2**24
"""More steps than a block has: a row's noise is counted by its block, whenever the batch comes to it."""


@dataclass(frozen=True)
class BlockState:
    """The state of generation block by block.

    Attributes:
        block: the current one; -1 before the first step.
        index: steps taken in it.
        num_steps: steps of a block at most.
        cache: what the network keeps of the rest of the text, see `BlockByBlock.context`.
        within: state of the sampler inside the block.
    """

    block: int
    index: int
    num_steps: int
    cache: Cache | None
    within: Any


class BlockByBlock(Sampler[BlockState]):
    """x^b from a sampler `within`, from t = 1 to 0, for b = 0, 1, ...

    Each of the K blocks has requested // K steps, at least one; `within` may take another number, and a block that is
    decided earlier in all rows of a batch makes room for the next. The times of a step are those of `within` inside
    its block; t and s of the `Step` that is passed in are not used.
    """

    within: Sampler[Any]

    @property
    @abstractmethod
    def size(self) -> int:
        """Tokens per block; the last block may be shorter."""

    @abstractmethod
    def columns(self, block: slice, length: int) -> slice:
        """Return the positions that the sampler inside the block is handed, the block's among them."""

    @abstractmethod
    def context(self, denoiser: Denoiser, x_t: Tensor, block: slice, cache: Cache | None) -> Cache | None:
        """Return what the network keeps of the rest of the text during the steps of a block.

        Args:
            denoiser: the network.
            x_t: int64 [B, L].
            block: positions of the block, which is at t = 1.
            cache: of the block before.
        """

    @property
    def parameterization(self) -> Parameterization:  # type: ignore[override]
        """That of the sampler inside a block."""
        return self.within.parameterization

    @property
    def needs_masks(self) -> bool:  # type: ignore[override]
        """As the sampler inside a block."""
        return self.within.needs_masks

    @property
    def reads_samples(self) -> bool:  # type: ignore[override]
        """As the sampler inside a block."""
        return self.within.reads_samples

    @property
    def keeps_distribution(self) -> bool:  # type: ignore[override]
        """As the sampler inside a block."""
        return self.within.keeps_distribution

    @property
    def has_likelihood(self) -> bool:
        """As the sampler inside a block."""
        return self.within.has_likelihood

    def with_settings(self, /, **settings: Any) -> Self:
        """Return a copy with other settings of its own, or of the sampler inside a block."""
        known = {field.name for field in fields(self)}  # type: ignore[arg-type]
        own = {key: settings.pop(key) for key in known & settings.keys()}
        changed: Self = replace(self, **own)  # type: ignore[type-var]
        if not settings:
            return changed
        return replace(changed, within=changed.within.with_settings(**settings))  # type: ignore[type-var]

    def init(self, canvas: Canvas) -> BlockState:
        """Return the state before the first block."""
        return BlockState(-1, 0, 0, None, None)

    def select(self, state: BlockState, rows: Tensor) -> BlockState:
        """Return the state of some rows, int64 [R]."""
        cache = None if state.cache is None else state.cache.select(rows)
        return replace(state, cache=cache, within=self.within.select(state.within, rows))

    def num_steps(self, canvas: Canvas, requested: int) -> int:
        """Return the steps of all blocks together."""
        blocks = self._blocks(canvas.tokens.shape[1])
        of_each = max(1, requested // len(blocks))
        most = max(
            self.within.num_steps(Canvas(canvas.tokens[:, here], canvas.fixed[:, here]), of_each) for here in blocks
        )
        return len(blocks) * most

    def undecided(self, process: ForwardProcess, x_t: Tensor, fixed: Tensor, state: BlockState) -> Tensor:
        """Return bool [B, L]: what later blocks will fill, and what is undecided in this one."""
        free = super().undecided(process, x_t, fixed, state)
        if state.block < 0:
            return free
        block = self._blocks(x_t.shape[1])[state.block]
        free[:, : block.stop] = False
        if state.index < state.num_steps:
            here, inside = self._inside(Canvas(x_t, fixed), block)
            free[:, here] |= self.within.undecided(process, inside.tokens, inside.fixed, state.within)
        return free

    def step(
        self, denoiser: Denoiser, process: ForwardProcess, x_t: Tensor, step: Step, state: BlockState
    ) -> Stepped[BlockState]:
        """Take one step of `within` in the first block that is not decided."""
        state = self._advanced(denoiser, process, x_t, step, state)
        here, inside = self._inside(Canvas(x_t, step.fixed), self._blocks(x_t.shape[1])[state.block])
        t, s = self.within.times(state.num_steps)[state.index : state.index + 2].to(x_t.device)
        inner = Step(
            state.index,
            state.num_steps,
            t.expand(len(x_t)),
            s.expand(len(x_t)),
            inside.fixed,
            step.given[:, here],
            step.noise.at(step=state.block * MOST_STEPS + state.index, start=step.noise.start + here.start),
            state.cache,
        )
        done = self.within.step(denoiser, process, inside.tokens, inner, state.within)
        tokens = torch.cat([x_t[:, : here.start], done.tokens, x_t[:, here.stop :]], dim=1)
        state = replace(state, index=state.index + 1, within=done.state)
        return Stepped(tokens, state, _in_whole(done.reading, here, x_t))

    def _advanced(
        self, denoiser: Denoiser, process: ForwardProcess, x_t: Tensor, step: Step, state: BlockState
    ) -> BlockState:
        """Return the state in the first block, from the current one on, that has anything to do."""
        blocks = self._blocks(x_t.shape[1])
        for block in range(state.block, len(blocks)):
            if block > state.block:
                state = self._entered(denoiser, x_t, step, state, block)
            if block >= 0 and self.undecided(process, x_t, step.fixed, state)[:, blocks[block]].any():
                break
        return state

    def _entered(self, denoiser: Denoiser, x_t: Tensor, step: Step, state: BlockState, block: int) -> BlockState:
        blocks = self._blocks(x_t.shape[1])
        _, inside = self._inside(Canvas(x_t, step.fixed), blocks[block])
        cache = self.context(denoiser, x_t, blocks[block], state.cache)
        return BlockState(block, 0, step.num_steps // len(blocks), cache, self.within.init(inside))

    def _inside(self, canvas: Canvas, block: slice) -> tuple[slice, Canvas]:
        """Return the columns that the sampler inside the block is handed, and their canvas, free in the block alone."""
        length = canvas.tokens.shape[1]
        here = self.columns(block, length)
        at = torch.arange(length, device=canvas.fixed.device)
        outside = (at < block.start) | (at >= block.stop)
        return here, Canvas(canvas.tokens[:, here], (canvas.fixed | outside)[:, here])

    def _blocks(self, length: int) -> list[slice]:
        return [slice(start, min(start + self.size, length)) for start in range(0, length, self.size)]


def _in_whole(reading: Reading | None, here: slice, x_t: Tensor) -> Reading | None:
    """Return the reading with positions of the whole text."""
    if reading is None:
        return None
    where = torch.zeros(x_t.shape, dtype=torch.bool, device=x_t.device)
    where[:, here] = reading.where
    return Reading(where, reading.logits)
