"""A trained model with its parts: text from Python."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import DictConfig

from dlmkit.backbones.base import Backbone
from dlmkit.data.tokenizers.base import Tokenizer
from dlmkit.generation import BATCH_SIZE, Completions, OnStart, OnStep, complete
from dlmkit.inference.choice import chosen_sampler, guided
from dlmkit.inference.decoding import Decoding
from dlmkit.inference.texts import CompletedText, Texts, completed_text
from dlmkit.objectives.base import Objective
from dlmkit.processes.base import ForwardProcess
from dlmkit.ranges import Count, check
from dlmkit.requests import Request, RequestBuilder
from dlmkit.samplers.base import Sampler
from dlmkit.types import Canvas, Denoiser

RENAMED = {"num_steps": "steps"}
"""Keywords of `generate` in earlier releases, and what they are called now."""


@dataclass(frozen=True)
class LoadedModel:
    """A trained model with its parts, ready to generate and to be evaluated; `dlmkit.load` returns one.

    Attributes:
        config: its resolved configuration.
        backbone: the network in eval mode, on the CPU.
        process: its noise.
        objective: what it was trained by.
        sampler: its sampler.
        tokenizer: its tokenizer, or ``None`` where the data had none.
    """

    config: DictConfig
    backbone: Backbone
    process: ForwardProcess
    objective: Objective[Any]
    sampler: Sampler[Any]
    tokenizer: Tokenizer | None

    def generate(
        self,
        prompts: str | list[str] | None = None,
        *,
        infill: str | list[str] | None = None,
        num_samples: int = 1,
        steps: int = 64,
        length: int | None = None,
        sampler: Sampler[Any] | str | None = None,
        block_length: int | None = None,
        guidance: float = 0.0,
        seed: int = 0,
        stop_at_eos: bool = False,
        on_step: OnStep | None = None,
        **settings: Any,
    ) -> Texts:
        """Return generated texts, given parts included: `num_samples` for each prompt, in order.

        Special tokens are shown, so that a text may begin with the start token, "<|eos|>".

        Args:
            prompts: text to continue, one or several of any lengths; ``None`` or "" for unconditional text.
            infill: a text with gaps, or several: "[MASK:n]" for n tokens, "[MASK:<=n]" for at most n; without
                `prompts` and `length`.
            num_samples: texts for each prompt, at least 1.
            steps: reverse steps, at least 1; some samplers take another number, see `Sampler.num_steps`.
            length: tokens in all; the training length by default. An infill has its own.
            sampler: another one than the model's own, or its name in conf/sampler.
            block_length: decide blocks of so many tokens from left to right, see `dlmkit.samplers.semi_autoregressive`;
                a model that was trained in blocks has its own.
            guidance: scale of classifier-free guidance by the given tokens, see `dlmkit.backbones.guided`; 0 for none.
            seed: of the noise.
            stop_at_eos: end each text at the first generated end of document behind all that is given.
            on_step: called after every step.
            settings: of the sampler, such as temperature=0.8.

        Raises:
            ValueError: a model without tokenizer, a sampler that does not fit it, requests that cannot be met.
        """
        _refuse_old_names(settings)
        chosen = self.choose_sampler(sampler, block_length, **settings)
        requests = self.make_requests(prompts, infill, num_samples, length)
        for request in requests:
            self.check_request(request, chosen, guidance)
        began = time.perf_counter()
        done = self.complete(
            requests, steps, chosen, seed, on_step, guidance=guidance, stop_id=self.stop_id(stop_at_eos)
        )
        return self.texts(requests, done, time.perf_counter() - began)

    def make_requests(
        self,
        prompts: str | list[str] | None = None,
        infill: str | list[str] | None = None,
        num_samples: int = 1,
        length: int | None = None,
    ) -> list[Request]:
        """Return `num_samples` requests for each prompt, or for each infill; arguments as in `generate`.

        Raises:
            ValueError: a model without tokenizer, no room behind a prompt, a text without gaps or longer than the
                network reads.
        """
        check("num_samples", num_samples, Count)
        if infill is not None and (prompts is not None or length is not None):
            raise ValueError("infill with prompts or length: a text with gaps has a length of its own; leave them out")
        given = prompts if infill is None else infill
        texts = [given] if isinstance(given, str) else given or [""]
        asked = [self.request(text, infill is not None, length) for text in texts]
        return [request for request in asked for _ in range(num_samples)]

    def request(self, text: str, infill: bool = False, length: int | None = None) -> Request:
        """Return the request to continue a text, or to fill its gaps.

        Args:
            text: a prompt, "" for none; or a text with gaps.
            infill: whether it has gaps.
            length: tokens in all of a continued text; the training length by default.

        Raises:
            ValueError: as for `make_requests`.
        """
        tokenizer, most = self.text_tokenizer, self.backbone.max_length
        builder = RequestBuilder(self.backbone.predicts_first, tokenizer.eos_id)
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError("the text has half of a surrogate pair, or bytes that are not UTF-8: write it as UTF-8")
        if infill:
            request = builder.infill(text, tokenizer)
            num_tokens = len(request.tokens)
            if num_tokens > most:
                raise ValueError(
                    f"the text has {num_tokens} tokens with its gaps, and this network reads {most}: shorten the text"
                    " or its gaps"
                )
            return request
        ids = tokenizer.encode(text) if text else []
        if len(ids) >= most:
            raise ValueError(f"the prompt has {len(ids)} tokens, and this network reads {most}: shorten the prompt")
        size: int = self.config.length if length is None else length
        self.backbone.check_length(size)
        return builder.prompt(ids, size, text)

    def check_request(self, request: Request, sampler: Sampler[Any], guidance: float = 0.0) -> None:
        """Refuse a request that the sampler cannot meet, before anything is generated.

        Raises:
            ValueError: given tokens that the sampler cannot work around, or none where guidance needs some.
        """
        sampler.init(Canvas(torch.tensor([request.tokens]), torch.tensor([request.fixed])))
        if guidance and not any(piece.text for piece in request.pieces):
            raise ValueError(
                f"guidance {guidance} without a prompt: there is no given text to lean towards; give one, or set"
                " guidance to 0"
            )

    def texts(self, requests: Sequence[Request], completions: Completions, seconds: float = 0.0) -> Texts:
        """Return the texts of completed requests.

        Args:
            requests: what was asked for.
            completions: from `complete`.
            seconds: that it took.
        """
        done = [self.completed_text(*pair) for pair in zip(requests, completions.tokens, strict=True)]
        return Texts(
            [one.text for one in done],
            [one.tokens for one in done],
            [one.num_generated for one in done],
            completions.passes,
            seconds,
        )

    def completed_text(self, request: Request, ids: Sequence[int]) -> CompletedText:
        """Return the text of one completed request."""
        return completed_text(request, ids, self.text_tokenizer)

    @property
    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            ValueError: the model has none.
        """
        if self.tokenizer is None:
            raise ValueError("the model was trained on data without text: there is nothing to print")
        return self.tokenizer

    def stop_id(self, stop_at_eos: bool) -> int | None:
        """Return the id that ends a text, if it is to end."""
        return self.text_tokenizer.eos_id if stop_at_eos else None

    def choose_sampler(
        self, sampler: Sampler[Any] | str | None = None, block_length: int | None = None, **settings: Any
    ) -> Sampler[Any]:
        """Return a sampler that fits the model, with other settings where some are given.

        For a model that was trained in blocks a sampler without any is put inside blocks of that size.

        Args:
            sampler: a sampler, its name in conf/sampler, or ``None`` for the model's own.
            block_length: positions to decide before later ones, see `generate`.
            settings: of the sampler, such as temperature=0.8.

        Raises:
            ValueError: an unknown name or setting, or a sampler that does not fit the model.
        """
        return chosen_sampler(sampler or self.sampler, self.process, self.objective, block_length, settings)

    def complete(
        self,
        requests: list[Request],
        steps: int,
        sampler: Sampler[Any],
        seed: int = 0,
        on_step: OnStep | None = None,
        *,
        guidance: float = 0.0,
        stop_id: int | None = None,
        batch_size: int = BATCH_SIZE,
        places: Sequence[int] | None = None,
        on_start: OnStart | None = None,
    ) -> Completions:
        """Return the token ids of each request, the sampler from `choose_sampler`; see `dlmkit.generation.complete`.

        Args:
            requests: what to complete.
            steps: reverse steps of each batch, at least 1.
            sampler: the reverse step.
            seed: of the noise.
            on_step: called after every step.
            guidance: see `generate`.
            stop_id: id after which a text ends.
            batch_size: texts at a time.
            places: of the requests among all; 0, 1, ... by default.
            on_start: called before the first step of every batch.

        Raises:
            ValueError: guidance of a model, or with a sampler, that it does not fit; a number outside its range.
        """
        check("steps", steps, Count)
        check("batch_size", batch_size, Count)
        denoiser = self.denoiser(guidance, sampler)
        parts = (self.backbone, self.process, sampler)
        done = complete(*parts, requests, steps, seed, batch_size, on_step, stop_id, places, denoiser, on_start)
        each = 1 if guidance == 0 else 2  # with the prompt and without it
        return replace(done, passes=[each * passes for passes in done.passes])

    def decode(
        self,
        requests: list[Request],
        decoding: Decoding,
        on_step: OnStep | None = None,
        places: Sequence[int] | None = None,
        on_start: OnStart | None = None,
    ) -> Completions:
        """Return the token ids of each request, with the settings of a record; see `complete`."""
        return self.complete(
            requests,
            decoding.steps,
            decoding.sampler,
            decoding.seed,
            on_step,
            guidance=decoding.guidance,
            stop_id=self.stop_id(decoding.stop_at_eos),
            batch_size=decoding.batch_size,
            places=places,
            on_start=on_start,
        )

    def denoiser(self, guidance: float, sampler: Sampler[Any]) -> Denoiser:
        """Return the network, with guidance where its scale is not 0.

        Raises:
            ValueError: guidance of a model, or with a sampler, that it does not fit.
        """
        return guided(self.backbone, self.process, sampler, guidance)


def _refuse_old_names(settings: Mapping[str, Any]) -> None:
    for old, new in RENAMED.items():
        if old in settings:
            raise ValueError(f"{old} is now {new}: write {new}={settings[old]!r}")
