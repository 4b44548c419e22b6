"""Self-correction (GIDD): ancestral sampling, then replacement of tokens that the model finds unlikely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.base import ForwardProcess
from dlmkit.ranges import Range, check_fields
from dlmkit.samplers.ancestral import Ancestral
from dlmkit.samplers.base import Sampler, Step
from dlmkit.samplers.drawing import Filter, Temperature, TopK, TopP, categorical
from dlmkit.types import Canvas, Denoiser, NetworkInput


@dataclass(frozen=True)
class SelfCorrecting(Sampler[bool]):
    """Ancestral steps, then `num_corrections` steps of correction on the complete text.

    A correction draws a proposal from x_theta at every free position and accepts those proposals,
    `tokens_per_correction` in each sequence, that differ from the current token and of which the model is most
    confident. Once no proposal differs anywhere the remaining corrections cost no pass of the network. Text becomes
    likelier under the model and less varied, so samples do not follow the data's distribution (`faithful` is false),
    and with a weak model many corrections end in its commonest token. A model that was trained on replaced tokens
    (hybrid or uniform noise) recognises wrong ones; under absorbing noise clean tokens are carried over, and nothing is
    corrected. Source: arXiv 2503.04482 (GIDD), section 5 on self-correction.

    Attributes:
        temperature, top_k, top_p: of the ancestral steps, see :class:`dlmkit.samplers.drawing.Filter`.
        num_corrections: steps after the ancestral ones, at least 0; 0 is `ancestral`.
        tokens_per_correction: tokens that a correction changes in a sequence, at least 1.
        correction_temperature: of the proposals, at least 0; 0 proposes the likeliest token.
        correction_time: t of the network's input in a correction, in (0, 1): the noise level that it is conditioned on.
    """

    temperature: Temperature
    top_k: TopK
    top_p: TopP
    num_corrections: Annotated[int, Range("[0, 1000000]", "use 0 for none")]
    tokens_per_correction: Annotated[int, Range("[1, 1000000]", "a correction changes at least one")]
    correction_temperature: Temperature
    correction_time: Annotated[float, Range("(0, 1)", "try 0.01, for little noise")]

    parameterization = X0LeaveOneOut()
    faithful = False

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, canvas: Canvas) -> bool:
        """Return whether nothing is left to correct: not yet."""
        return bool(canvas.fixed.all())

    def num_steps(self, canvas: Canvas, requested: int) -> int:
        """Return the ancestral steps and the corrections."""
        return requested + self.num_corrections

    def times(self, num_steps: int) -> Tensor:
        """Return the grid of the ancestral steps, then 0 for each correction."""
        reverse = torch.linspace(1.0, 0.0, num_steps - self.num_corrections + 1, dtype=torch.float64)
        return torch.cat([reverse, reverse.new_zeros(self.num_corrections)])

    def step(
        self,
        denoiser: Denoiser,
        process: ForwardProcess,
        x_t: Tensor,
        fixed: Tensor,
        step: Step,
        state: bool,
        generator: torch.Generator,
    ) -> tuple[Tensor, bool]:
        """Return the tokens at time s, or corrected ones; the state is whether the last correction changed nothing."""
        num_reverse = step.num_steps - self.num_corrections
        if step.index < num_reverse:
            ancestral = Ancestral(self.temperature, self.top_k, self.top_p)
            reverse = Step(step.index, num_reverse, step.t, step.s)
            tokens, _ = ancestral.step(denoiser, process, x_t, fixed, reverse, None, generator)
            return tokens, state
        if state:
            return x_t, state
        corrected = self.correct(denoiser, process, x_t, fixed, generator)
        return corrected, torch.equal(corrected, x_t)

    def correct(
        self, denoiser: Denoiser, process: ForwardProcess, tokens: Tensor, fixed: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return complete tokens [B, L] after one correction; where `fixed` (bool [B, L]) nothing changes."""
        free = ~fixed
        t = torch.full((tokens.shape[0],), self.correction_time, dtype=torch.float64, device=tokens.device)
        logits, now = denoiser(NetworkInput(tokens, t)).logits(free), tokens[free]
        log_x0 = self.parameterization.log_x0(logits, now, t.new_full(now.shape, self.correction_time), process)
        proposal = categorical(Filter(self.correction_temperature, None, 1.0)(log_x0).softmax(-1), generator)
        confidence = log_x0.gather(-1, proposal[:, None])[:, 0].double()
        differs = proposal != now

        candidate = tokens.masked_scatter(free, proposal)
        ranked = torch.full(tokens.shape, float("-inf"), dtype=torch.float64, device=tokens.device)
        ranked = ranked.masked_scatter(free, confidence.masked_fill(~differs, float("-inf")))
        best, places = ranked.topk(min(self.tokens_per_correction, tokens.shape[1]), dim=-1)
        change = torch.zeros_like(fixed).scatter_(-1, places, best > float("-inf"))
        return torch.where(change, candidate, tokens)
