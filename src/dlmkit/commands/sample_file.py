"""`dlmkit sample --prompts FILE`: a text for each line of a file, in a file that a killed command goes on with."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dlmkit.commands.decoding import remark_on_steps
from dlmkit.generation import Event
from dlmkit.inference.bulk import Bulk
from dlmkit.inference.decoding import Decoding
from dlmkit.inference.model import LoadedModel
from dlmkit.inference.output import opened
from dlmkit.inference.prompts import PromptFile
from dlmkit.notices import notice


def sample_file(model: LoadedModel, decoding: Decoding, options: argparse.Namespace) -> None:
    """Make the texts of a file of prompts, and write them to --out or to standard output, a JSON line each.

    Raises:
        ValueError: a bad line, an output that is not this command's, settings that do not fit.
    """
    if options.infill_file is not None and options.length is not None:
        raise ValueError("--length with --infill-file: a text with gaps has a length of its own; leave it out")
    if options.json:
        raise ValueError("--json is for single texts: a file of prompts gives JSON lines anyway; leave it out")
    prompts = PromptFile(options.prompts or options.infill_file, gaps_only=options.prompts is None)
    bulk = Bulk(model, prompts, decoding)
    if options.out is None:
        _make(model, bulk, Printed())
    else:
        _write(model, bulk, options.out)
    remark = remark_on_steps(options.steps, decoding.sampler, bulk.most_free, bulk.most_passes)
    if remark is not None:
        notice(remark)


def _write(model: LoadedModel, bulk: Bulk, out: Path) -> None:
    with opened(out, bulk.settings(), bulk.known_lines()) as output:
        there = output.num_lines
        try:
            _make(model, bulk, output)
        except KeyboardInterrupt as error:
            line = f"{out} has {output.num_lines} of {bulk.num_texts} texts, and the same command goes on"
            raise KeyboardInterrupt(line) from error
        went_on = f", {there} of them from before" if there else ""
        notice(f"{out} has all {bulk.num_texts} texts{went_on}")


def _make(model: LoadedModel, bulk: Bulk, lines: Any) -> None:
    model.backbone.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    with _progress(bulk.num_texts, lines.num_lines) as progress:
        bulk.write(lines, progress.on_step, progress.on_batch)


@dataclass
class Printed:
    """Standard output as a place for lines.

    Attributes:
        num_lines: that were printed.
    """

    num_lines: int = 0

    def append(self, lines: Sequence[dict[str, Any]]) -> None:
        """Print lines."""
        sys.stdout.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        sys.stdout.flush()
        self.num_lines += len(lines)


@dataclass
class _Bar:
    """How many texts are made; of a batch in the making, as large a part as of its steps is done.

    Attributes:
        show: draws so many texts, a fraction among them.
        done: texts before the batch.
        batch: texts of the batch.
    """

    show: Callable[[float], None]
    done: int
    batch: int = 0

    def on_batch(self, num_texts: int) -> None:
        """Begin a batch."""
        self.done, self.batch = self.done + self.batch, num_texts

    def on_step(self, event: Event) -> None:
        """Draw the batch's progress."""
        self.show(self.done + self.batch * (event.index + 1) / event.num_steps)


@contextmanager
def _progress(total: int, there: int) -> Iterator[_Bar]:
    """Give a bar with the time that is left, on a terminal."""
    columns = (TextColumn("sampling"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("sampling", total=total, completed=there)
        yield _Bar(lambda texts: bar.update(task, completed=texts), there)
