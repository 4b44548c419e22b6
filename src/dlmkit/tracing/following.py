"""From the sampling loop to the views of it: a trace that is built, a terminal that is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dlmkit.generation import Beginning, Event


class View(Protocol):
    """What follows texts while they form; see :class:`dlmkit.tracing.builder.TraceBuilder` for the arguments."""

    def start(
        self, tokens: Tensor, fixed: Tensor, blank: Tensor | None = None, places: Sequence[int] | None = None
    ) -> None:
        """Begin a batch."""

    def step(
        self,
        rows: Tensor,
        before: Tensor,
        after: Tensor,
        where: Tensor | None,
        logits: Tensor | None,
        t: Tensor,
        passes: Tensor,
    ) -> None:
        """Follow one step of it."""


@dataclass(frozen=True)
class Following:
    """`on_start` and `on_step` of `dlmkit.generation.generate` for several views.

    Attributes:
        views: told of everything, in this order.
    """

    views: Sequence[View]

    def on_start(self, beginning: Beginning) -> None:
        """Tell the views of a batch."""
        places = beginning.places.tolist()
        for view in self.views:
            view.start(beginning.tokens, beginning.fixed, beginning.blank, places)

    def on_step(self, event: Event) -> None:
        """Tell the views of a step."""
        where = None if event.reading is None else event.reading.where
        logits = None if event.reading is None else event.reading.logits
        for view in self.views:
            view.step(event.rows, event.before, event.after, where, logits, event.t, event.passes)
