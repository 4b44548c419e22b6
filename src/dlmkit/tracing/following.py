"""From the sampling loop to the views of it: a trace that is built, a terminal that is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dlmkit.generation import Beginning, Event


class View(Protocol):
    """What follows texts while they form."""

    def start(self, beginning: Beginning) -> None:
        """Begin a batch; later steps are about its rows."""

    def step(self, event: Event) -> None:
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
        for view in self.views:
            view.start(beginning)

    def on_step(self, event: Event) -> None:
        """Tell the views of a step."""
        for view in self.views:
            view.step(event)
