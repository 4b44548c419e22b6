"""`dlmkit sample`: text from a trained model, from nothing, from a prompt, or in the gaps of a text."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dlmkit.checkpoints.load import load
from dlmkit.commands.decoding import decoding_of, remark_on_steps
from dlmkit.commands.messages import silence_libraries
from dlmkit.commands.sample_file import sample_file
from dlmkit.generation import OnStep, planned_steps
from dlmkit.inference.decoding import Decoding
from dlmkit.inference.texts import Texts
from dlmkit.notices import notice
from dlmkit.requests import Request

ECHOED = ("prompt", "infill", "num_samples", "seed", "guidance", "stop_at_eos")
"""Options that the JSON object repeats."""


def main(options: argparse.Namespace) -> None:
    """Generate and print, or write.

    Raises:
        ValueError: a model without text, a sampler that does not fit it, a request that cannot be met.
    """
    silence_libraries(progress=sys.stderr.isatty())
    model = load(options.checkpoint, options.trust)
    decoding = decoding_of(model, options)
    if options.prompts is not None or options.infill_file is not None:
        sample_file(model, decoding, options)
        return
    if options.out is not None:
        raise ValueError("--out is for a file of prompts: give --prompts FILE.jsonl too, or leave it out")
    requests = model.make_requests(options.prompt, options.infill, options.num_samples, options.length)
    for request in requests:
        model.check_request(request, decoding.sampler, decoding.guidance)
    model.denoiser(decoding.guidance, decoding.sampler)
    model.backbone.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    with watching(decoding, requests) as on_step:
        began = time.perf_counter()
        done = model.decode(requests, decoding, on_step)
        texts = model.texts(requests, done, time.perf_counter() - began)
    print_texts(texts, decoding, options)
    num_free = max(request.num_free for request in requests)
    if (remark := remark_on_steps(options.steps, decoding.sampler, num_free, max(texts.passes))) is not None:
        notice(remark)


@contextmanager
def watching(decoding: Decoding, requests: list[Request]) -> Iterator[OnStep]:
    """Give what is called after every step: the place of all that looks on."""
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
        task = bar.add_task("sampling", total=total)
        yield lambda _event: bar.advance(task)


def print_texts(texts: Texts, decoding: Decoding, options: argparse.Namespace) -> None:
    """Print the texts, or a JSON object with them, the settings and what they cost."""
    if options.json:
        content = {
            **{key: getattr(options, key) for key in ECHOED},
            "sampler": decoding.sampler.name,
            "steps": decoding.steps,
            "texts": texts.texts,
            "statistics": {
                "num_tokens": texts.num_generated,
                "passes": texts.passes,
                "tokens_per_pass": texts.tokens_per_pass,
                "seconds": texts.seconds,
            },
        }
        sys.stdout.write(json.dumps(content, ensure_ascii=False, indent=2) + "\n")
        return
    for index, text in enumerate(texts.texts):
        if len(texts.texts) > 1:
            sys.stdout.write(f"--- {index + 1} of {len(texts.texts)} ---\n")
        sys.stdout.write(text + "\n")
