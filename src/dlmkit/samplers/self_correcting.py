"""Self-correction (GIDD): ancestral sampling, then replacement of tokens that the model finds unlikely."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from dlmkit.parameterizations.x0 import X0LeaveOneOut
from dlmkit.processes.base import ForwardProcess
from dlmkit.ranges import Range
from dlmkit.samplers.ancestral import Ancestral
from dlmkit.samplers.base import Reading, Sampler, Step, Stepped, read
from dlmkit.samplers.drawing import Shaped, Temperature
from dlmkit.tensors import categorical
from dlmkit.types import Canvas, Denoiser


@dataclass(frozen=True)
class Settled:
    """Which rows a correction left as they were.

    Attributes:
        rows: bool [B].
    """

    rows: Tensor

    def select(self, rows: Tensor) -> Settled:
        """Return this of some rows, int64 [R]."""
        return Settled(self.rows[rows])


@dataclass(frozen=True)
class SelfCorrecting(Shaped, Sampler[Settled]):
    """Ancestral steps, then `num_corrections` steps of correction on the complete text.

    A correction draws a proposal from x_theta at every free position and accepts those proposals,
    `tokens_per_correction` in each sequence, that differ from the current token and of which the model is most
    confident. A row in which no proposal differs is finished. Text becomes
    likelier under the model and less varied, so samples do not follow the data's distribution (`faithful` is false),
    and with a weak model many corrections end in its commonest token. A model that was trained on replaced tokens
    (hybrid or uniform noise) recognises wrong ones; under absorbing noise clean tokens are carried over, and nothing is
    corrected. Source: arXiv 2503.04482 (GIDD), section 5 on self-correction.

    Attributes:
        num_corrections: steps after the ancestral ones, at least 0; 0 is `ancestral`.
        tokens_per_correction: tokens that a correction changes in a sequence, at least 1.
        correction_temperature: of the proposals, at least 0; 0 proposes the likeliest token.
        correction_time: t of the network's input in a correction, in (0, 1): the noise level that it is conditioned on.
    """

    num_corrections: Annotated[int, Range("[0, 1000000]", "use 0 for none")] = 32
    tokens_per_correction: Annotated[int, Range("[1, 1000000]", "a correction changes at least one")] = 1
    correction_temperature: Temperature = 0.1
    correction_time: Annotated[float, Range("(0, 1)", "try 0.01, for little noise")] = 0.01

    parameterization = X0LeaveOneOut()
    reads_samples = True
    keeps_distribution = False

    def init(self, canvas: Canvas) -> Settled:
        """Return which rows have nothing to correct: those that are given."""
        return Settled(canvas.fixed.all(-1))

    def undecided(self, process: ForwardProcess, x_t: Tensor, fixed: Tensor, state: Settled) -> Tensor:
        """Return bool [B, L]: the free positions of rows that the last correction changed."""
        return ~fixed & ~state.rows[:, None]

    def num_steps(self, canvas: Canvas, requested: int) -> int:
        """Return the ancestral steps and the corrections."""
        return requested + self.num_corrections

    def times(self, num_steps: int) -> Tensor:
        """Return the grid of the ancestral steps, then 0 for each correction."""
        reverse = torch.linspace(1.0, 0.0, num_steps - self.num_corrections + 1, dtype=torch.float64)
        return torch.cat([reverse, reverse.new_zeros(self.num_corrections)])

    def step(
        self, denoiser: Denoiser, process: ForwardProcess, x_t: Tensor, step: Step, state: Settled
    ) -> Stepped[Settled]:
        """Return the tokens at time s, or corrected ones."""
        num_reverse = step.num_steps - self.num_corrections
        if step.index < num_reverse:
            ancestral = Ancestral(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)
            done = ancestral.step(denoiser, process, x_t, replace(step, num_steps=num_reverse), None)
            return Stepped(done.tokens, state, done.reading)
        t = torch.full((len(x_t),), self.correction_time, dtype=torch.float64, device=x_t.device)
        reading = read(denoiser, x_t, ~step.fixed & ~state.rows[:, None], step, t)
        if not len(reading.logits):
            return Stepped(x_t, state, reading)
        corrected = self.corrected(process, x_t, step, reading)
        return Stepped(corrected, Settled((corrected == x_t).all(-1)), reading)

    def corrected(self, process: ForwardProcess, tokens: Tensor, step: Step, reading: Reading) -> Tensor:
        """Return complete tokens [B, L] after one correction of the positions that were read."""
        free, now = reading.where, tokens[reading.where]
        t = torch.full(now.shape, self.correction_time, dtype=torch.float64, device=now.device)
        log_x0 = self.parameterization.log_x0(reading.logits, now, t, process)
        sharpened = Shaped(temperature=self.correction_temperature).sharpened(log_x0)
        proposal = categorical(sharpened.softmax(-1), step.noise.uniform("tokens", tokens.shape[1])[free])
        confidence = log_x0.gather(-1, proposal[:, None])[:, 0].double()
        differs = proposal != now

        candidate = tokens.masked_scatter(free, proposal)
        ranked = torch.full(tokens.shape, float("-inf"), dtype=torch.float64, device=tokens.device)
        ranked = ranked.masked_scatter(free, confidence.masked_fill(~differs, float("-inf")))
        best, places = ranked.topk(min(self.tokens_per_correction, tokens.shape[1]), dim=-1)
        change = torch.zeros_like(free).scatter_(-1, places, best > float("-inf"))
        return torch.where(change, candidate, tokens)
