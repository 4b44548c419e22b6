"""`dlmkit sample`: text from a trained model, from nothing, from a prompt, or in the gaps of a text."""

from __future__ import annotations

import argparse
import json
import sys

import torch
from rich.progress import Progress

from dlmkit.checkpoints.load import load
from dlmkit.commands.messages import silence_libraries
from dlmkit.generation import planned_steps

SETTINGS = ("temperature", "top_k", "top_p")
"""Options that are settings of the sampler."""


def main(options: argparse.Namespace) -> None:
    """Generate and print.

    Raises:
        ValueError: a model without text, a sampler that does not fit it, a request that cannot be met.
    """
    silence_libraries(progress=sys.stderr.isatty())
    model = load(options.checkpoint, options.trust)
    settings = {key: getattr(options, key) for key in SETTINGS if getattr(options, key) is not None}
    sampler = model.choose_sampler(options.sampler, **settings)
    requests = model.make_requests(options.prompt, options.infill, options.num_samples, options.length)
    model.backbone.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    with Progress(transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("sampling", total=planned_steps(sampler, requests, options.steps))
        completions = model.complete(
            requests, options.steps, sampler, options.seed, on_step=lambda _event: progress.advance(task)
        )
    print_texts(model.texts(completions), options)


def print_texts(texts: list[str], options: argparse.Namespace) -> None:
    """Print the texts, or a JSON object with them and the settings."""
    if options.json:
        settings = {key: getattr(options, key) for key in ("prompt", "infill", "steps", "num_samples", "seed")}
        sys.stdout.write(json.dumps({**settings, "texts": texts}, ensure_ascii=False, indent=2) + "\n")
        return
    for index, text in enumerate(texts):
        if len(texts) > 1:
            sys.stdout.write(f"--- {index + 1} of {len(texts)} ---\n")
        sys.stdout.write(text + "\n")
