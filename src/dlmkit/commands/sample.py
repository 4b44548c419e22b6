"""`dlmkit sample`: text from a trained model, from nothing, from a prompt, or in the gaps of a text."""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch

from dlmkit.checkpoints.load import load
from dlmkit.commands.decoding import decoding_of, remark_on_steps
from dlmkit.commands.messages import silence_libraries
from dlmkit.commands.sample_file import sample_file
from dlmkit.commands.sample_views import traced, watching
from dlmkit.inference.decoding import Decoding
from dlmkit.inference.texts import Texts
from dlmkit.notices import notice
from dlmkit.tracing.builder import TraceBuilder
from dlmkit.tracing.following import Following
from dlmkit.tracing.write import check_path, write_trace

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
    if options.trace is not None:
        check_path(options.trace)
    requests = model.make_requests(options.prompt, options.infill, options.num_samples, options.length)
    for request in requests:
        model.check_request(request, decoding.sampler, decoding.guidance)
    model.denoiser(decoding.guidance, decoding.sampler)
    model.backbone.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    builder = None if options.trace is None else TraceBuilder(model.text_tokenizer.piece, model.process.mask_id)
    with watching(model, decoding, requests, options.watch) as on_lookers:
        following = Following(on_lookers if builder is None else [*on_lookers, builder])
        began = time.perf_counter()
        done = model.decode(requests, decoding, following.on_step, on_start=following.on_start)
        texts = model.texts(requests, done, time.perf_counter() - began)
    print_texts(texts, decoding, options)
    if builder is not None:
        write_trace(traced(builder, decoding, options, texts), options.trace)
    num_free = max(request.num_free for request in requests)
    if (remark := remark_on_steps(options.steps, decoding.sampler, num_free, max(texts.passes))) is not None:
        notice(remark)


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
