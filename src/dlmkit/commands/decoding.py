"""From the options of `dlmkit sample` to a sampler with its settings, and what is to be said about its steps."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch

from dlmkit.inference.choice import chosen_sampler
from dlmkit.inference.decoding import Decoding
from dlmkit.inference.model import LoadedModel
from dlmkit.samplers.base import Sampler
from dlmkit.types import Canvas

STEPS = 64
"""Reverse steps where none are asked for."""

SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "score", "token")
"""Options that are settings of a sampler; any other is given by --set."""

MANY = 10**6
"""Steps that no text needs."""

WORDS: Mapping[str, Any] = {"null": None, "true": True, "false": False}


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the sampler that were typed.

    Raises:
        ValueError: one that is given twice, or that has no value.
    """
    settings = {key: getattr(options, key) for key in SETTINGS if getattr(options, key) is not None}
    for assignment in options.set:
        key, equals, text = assignment.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"--set {assignment!r} is not KEY=VALUE: write it as in --set threshold=0.8")
        if key in settings:
            raise ValueError(f"{key} is given twice: leave one out")
        settings[key] = value_of(text)
    return settings


def value_of(text: str) -> Any:
    """Return a typed value: null, true, false, a whole number, a number, or text."""
    if text in WORDS:
        return WORDS[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def decoding_of(model: LoadedModel, options: argparse.Namespace) -> Decoding:
    """Return how the texts are to be made, with a sampler that fits the model.

    Raises:
        ValueError: an unknown name or setting, a value outside its range, or a sampler that does not fit the model.
    """
    sampler = options.sampler or model.sampler
    return Decoding(
        chosen_sampler(sampler, model.process, model.objective, options.block_length, settings_of(options)),
        steps=STEPS if options.steps is None else options.steps,
        length=options.length,
        num_samples=options.num_samples,
        seed=options.seed,
        guidance=options.guidance,
        stop_at_eos=options.stop_at_eos,
        batch_size=options.batch_size,
    )


def remark_on_steps(asked: int | None, sampler: Sampler[Any], num_free: int, passes: int) -> str | None:
    """Return a line where the number of steps that was asked for is not what happened, or ``None``.

    Args:
        asked: ``None`` where no number was.
        sampler: that was used.
        num_free: the most tokens that a text had to be given; 0 where no text was made.
        passes: the most passes of the network that a text took part in.
    """
    if asked is None or num_free == 0:
        return None
    blank = Canvas(torch.zeros(1, num_free, dtype=torch.int64), torch.zeros(1, num_free, dtype=torch.bool))
    if sampler.num_steps(blank, MANY) == sampler.num_steps(blank, 1):
        return f"{sampler.label} takes as many steps as a text needs, here up to {passes}, whatever --steps says"
    if asked > num_free and passes < asked:
        return (
            f"--steps {asked} is more than the {num_free} tokens to fill: {passes} passes of the network were enough,"
            " the other steps decided nothing"
        )
    return None
