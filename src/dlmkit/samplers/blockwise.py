"""Generation of block diffusion: blocks from left to right, another sampler inside each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from dlmkit.parameterizations.base import Parameterization
from dlmkit.parameterizations.next_token import NextToken
from dlmkit.prefix import AfterPrefix
from dlmkit.processes.base import ForwardProcess
from dlmkit.ranges import Tokens, check_fields
from dlmkit.samplers.base import Sampler, Step
from dlmkit.types import Cache, Canvas, Denoiser


@dataclass(frozen=True)
class BlockState:
    """The state of blockwise generation.

    Attributes:
        cache: of the clean blocks before the current one; ``None`` before the first step.
        within: state of the sampler inside the block.
    """

    cache: Cache | None
    within: Any


@dataclass(frozen=True)
class Blockwise(Sampler[BlockState]):
    """x^b ~ p(x^b | x^{<b}) for b = 0, 1, ..., each drawn by the sampler `within`, from t = 1 to 0.

    Each of the K blocks has requested // K steps, at least one; `within` may take another number. The times of a step
    are those of `within` inside its block; t and s of the `Step` that is passed in are not used. Given tokens stay,
    but a block does not depend on what is given after it: infilling has the left context alone. The blocks before the
    current one are handed to the denoiser once (`Denoiser.prefill`). Source: arXiv 2503.09573 (BD3-LM), algorithm 2.

    Attributes:
        block_size: tokens per block, as in training; the last block may be shorter.
        within: the sampler inside a block.
    """

    block_size: Tokens = field()  # no default, although the base class has one
    within: Sampler[Any]

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.within.parameterization, NextToken) or self.within.block_size is not None:
            raise ValueError(f"within={self.within.name}: give a diffusion sampler without blocks, such as ancestral")

    @property
    def parameterization(self) -> Parameterization:  # type: ignore[override]
        """That of the sampler inside a block."""
        return self.within.parameterization

    @property
    def faithful(self) -> bool:  # type: ignore[override]
        """As the sampler inside a block."""
        return self.within.faithful

    def with_settings(self, **settings: Any) -> Self:
        """Return a copy with another `block_size`, or with other settings of the sampler inside a block."""
        own = {key: settings.pop(key) for key in ("block_size", "within") if key in settings}
        changed = replace(self, **own)
        return replace(changed, within=changed.within.with_settings(**settings)) if settings else changed

    def init(self, canvas: Canvas) -> BlockState:
        """Return the state before the first block."""
        return BlockState(None, None)

    def num_steps(self, canvas: Canvas, requested: int) -> int:
        """Return the steps of all blocks together."""
        num_blocks = -(-canvas.tokens.shape[1] // self.block_size)
        return num_blocks * self.within.num_steps(canvas, max(1, requested // num_blocks))

    def step(
        self,
        denoiser: Denoiser,
        process: ForwardProcess,
        x_t: Tensor,
        fixed: Tensor,
        step: Step,
        state: BlockState,
        generator: torch.Generator,
    ) -> tuple[Tensor, BlockState]:
        """Take one step of `within` in the current block."""
        length = x_t.shape[1]
        steps_per_block = step.num_steps // -(-length // self.block_size)
        block, index = divmod(step.index, steps_per_block)
        here = slice(block * self.block_size, min((block + 1) * self.block_size, length))
        tokens, closed = x_t[:, here], fixed[:, here]
        if index == 0:
            state = self._enter(denoiser, x_t, Canvas(tokens, closed), state, here.start)
        assert state.cache is not None
        t, s = self.within.times(steps_per_block)[index : index + 2].to(x_t.device)
        inner = Step(index, steps_per_block, t.expand(len(x_t)), s.expand(len(x_t)))
        given = AfterPrefix(denoiser, state.cache)
        tokens, within = self.within.step(given, process, tokens, closed, inner, state.within, generator)
        return torch.cat([x_t[:, : here.start], tokens, x_t[:, here.stop :]], dim=1), replace(state, within=within)

    def _enter(self, denoiser: Denoiser, x_t: Tensor, block: Canvas, state: BlockState, start: int) -> BlockState:
        """Return the state at the first step of the block that begins at `start`."""
        seen = 0 if state.cache is None else state.cache.length
        cache = denoiser.prefill(x_t[:, seen:start], self.block_size, state.cache)
        return BlockState(cache, self.within.init(block))
