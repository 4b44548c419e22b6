"""What looks on while `dlmkit sample` works: a progress bar or the texts themselves; and the trace that is written."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dlmkit.generation import Beginning, Event, planned_steps
from dlmkit.inference.decoding import Decoding
from dlmkit.inference.model import LoadedModel
from dlmkit.inference.texts import Texts
from dlmkit.requests import Request
from dlmkit.tracing.builder import TraceBuilder
from dlmkit.tracing.following import View
from dlmkit.tracing.record import Trace
from dlmkit.tracing.watch import Watch


@contextmanager
def watching(model: LoadedModel, decoding: Decoding, requests: list[Request], live: bool) -> Iterator[list[View]]:
    """Give what looks on while texts form: the texts themselves in the terminal, or a progress bar."""
    if live and sys.stdout.isatty():
        with Watch(model.text_tokenizer.piece, model.process.mask_id) as watch:
            yield [watch]
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(
        *columns,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with bar:
        total = planned_steps(decoding.sampler, requests, decoding.steps, decoding.batch_size)
        yield [StepBar(bar, bar.add_task("sampling", total=total))]


@dataclass(frozen=True)
class StepBar:
    """A progress bar of the steps, a view of `dlmkit.tracing.following`."""

    bar: Progress
    task: TaskID

    def start(self, beginning: Beginning) -> None:
        """Begin a batch."""

    def step(self, event: Event) -> None:
        """Go on by one."""
        self.bar.advance(self.task)


def traced(builder: TraceBuilder, decoding: Decoding, options: argparse.Namespace, texts: Texts) -> Trace:
    """Return the trace of what was made."""
    prompt = options.infill or options.prompt or ""
    settings = {key: value for key, value in decoding.described().items() if key not in ("sampler", "seed")}
    name = decoding.sampler.name
    return builder.finish(
        options.checkpoint.name, name, settings, decoding.seed, texts.texts, [prompt] * len(texts.texts)
    )
