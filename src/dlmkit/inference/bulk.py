"""Texts for a file of prompts, batch by batch, in an order and with noise that do not depend on where it was begun."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch

from dlmkit import __version__
from dlmkit.generation import Completions, OnStep
from dlmkit.inference.decoding import Decoding
from dlmkit.inference.model import LoadedModel
from dlmkit.inference.prompts import Prompt, PromptFile
from dlmkit.requests import Request, batches

WINDOW = 8
"""Batches that are formed together, each of texts of one length; lines are written in the order of the file."""


class Lines(Protocol):
    """Where lines go: `dlmkit.inference.output.Output`, or a stream."""

    num_lines: int
    """Lines that are there already."""

    def append(self, lines: list[dict[str, Any]]) -> None:
        """Write more of them."""


@dataclass(frozen=True)
class _Item:
    """One text to make: the prompt, which of its samples, and the place among all."""

    prompt: Prompt
    sample: int
    place: int


class Bulk:
    """The texts of a file of prompts.

    A text depends on the seed and its place in the file. Batches are formed from fixed stretches of the file, so that
    a text has the same neighbours, and the same rounding, however often the command was stopped and begun again.

    Args:
        model: on the device that it is to run on.
        prompts: the file.
        decoding: how.

    Raises:
        ValueError: a file or a line that cannot be used; guidance of a model that it does not fit.
    """

    def __init__(self, model: LoadedModel, prompts: PromptFile, decoding: Decoding) -> None:
        self._model, self._prompts, self._decoding = model, prompts, decoding
        model.denoiser(decoding.guidance, decoding.sampler)
        self.num_texts = decoding.num_samples * prompts.check(self._check)
        """Lines of the whole output."""
        self.most_free = 0
        """The most tokens to generate in a text that was made."""
        self.most_passes = 0
        """The most passes of the network that a text which was made took part in."""

    def _check(self, prompt: Prompt) -> None:
        self._model.check_request(self._request(prompt), self._decoding.sampler, self._decoding.guidance)

    def _request(self, prompt: Prompt) -> Request:
        return self._model.request(prompt.text, prompt.infill, self._decoding.length)

    def settings(self) -> dict[str, Any]:
        """Return what decides the texts, by dotted names: the file, the weights, the sampler, the numbers."""
        decoding = self._decoding
        length = self._model.config.length if decoding.length is None else decoding.length
        return {
            "dlmkit_version": __version__,
            "prompts": self._prompts.fingerprint,
            "weights": weights_fingerprint(self._model.backbone),
            **decoding.described(),
            "length": length,
        }

    def known_lines(self) -> Iterator[dict[str, Any]]:
        """Yield what each line of the output is known by, in order."""
        return ({"id": item.prompt.id, "sample": item.sample} for item in self._items())

    def write(self, lines: Lines, on_step: OnStep | None = None, on_batch: Callable[[int], None] | None = None) -> None:
        """Make the texts whose lines are not there yet, and write them in the order of the file.

        Args:
            lines: where they go.
            on_step: called after every step.
            on_batch: called before every batch with the number of its texts.
        """
        items = self._items()
        size = WINDOW * self._decoding.batch_size
        while window := list(islice(items, size)):
            if window[-1].place >= lines.num_lines:
                self._write_window(window, lines, on_step, on_batch)

    def _write_window(
        self, window: list[_Item], lines: Lines, on_step: OnStep | None, on_batch: Callable[[int], None] | None
    ) -> None:
        first = window[0].place
        requests = [self._request(item.prompt) for item in window]
        made: dict[int, dict[str, Any]] = {}
        there = lines.num_lines  # when the window was begun
        for batch in batches(requests, self._decoding.batch_size, "cpu"):
            if all(first + index < there for index in batch.indices):
                continue
            if on_batch is not None:
                on_batch(len(batch.indices))
            asked = [requests[index] for index in batch.indices]
            places = [first + index for index in batch.indices]
            done = self._model.decode(asked, self._decoding, on_step, places)
            for row, index in enumerate(batch.indices):
                made[first + index] = self._line(window[index], asked[row], done, row)
            ready: list[dict[str, Any]] = []
            while (line := made.pop(lines.num_lines + len(ready), None)) is not None:
                ready.append(line)
            lines.append(ready)

    def _line(self, item: _Item, request: Request, done: Completions, row: int) -> dict[str, Any]:
        completed = self._model.completed_text(request, done.tokens[row])
        self.most_free = max(self.most_free, request.num_free)
        self.most_passes = max(self.most_passes, done.passes[row])
        return {
            "id": item.prompt.id,
            "sample": item.sample,
            "text": completed.text,
            "num_tokens": completed.num_generated,
            "passes": done.passes[row],
            "seed": self._decoding.seed,
        }

    def _items(self) -> Iterator[_Item]:
        num = self._decoding.num_samples
        for index, prompt in enumerate(self._prompts):
            for sample in range(num):
                yield _Item(prompt, sample, index * num + sample)


def weights_fingerprint(network: torch.nn.Module) -> str:
    """Return the SHA-256 of a network's weights and their names."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
