"""Reading a trained model back: its configuration, its parts, its tokenizer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from dlmkit import runs
from dlmkit.backbones.base import Backbone
from dlmkit.backbones.guided import Guided
from dlmkit.build import build_backbone, build_objective, build_process, build_sampler, named_sampler
from dlmkit.checkpoints.container import read_without_tensors
from dlmkit.checkpoints.folder import is_folder, read_config
from dlmkit.checkpoints.parts import read_parts
from dlmkit.checkpoints.shards import read_whole
from dlmkit.compatibility import Parts, check
from dlmkit.config import register_resolvers
from dlmkit.data.tokenizers import load_tokenizer
from dlmkit.data.tokenizers.base import Tokenizer
from dlmkit.generation import BATCH_SIZE, Completions, OnStep, complete, for_block_size
from dlmkit.module import BACKBONE
from dlmkit.objectives.base import Objective
from dlmkit.parameterizations.next_token import NextToken
from dlmkit.parts import Part, walk
from dlmkit.processes.base import ForwardProcess
from dlmkit.requests import Request, RequestBuilder
from dlmkit.samplers.base import Sampler
from dlmkit.samplers.blockwise import Blockwise
from dlmkit.samplers.semi_autoregressive import SemiAutoregressive
from dlmkit.trust import check_targets


@dataclass(frozen=True)
class LoadedModel:
    """A trained model with its parts, ready to generate and to be evaluated.

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
        infill: str | None = None,
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
            infill: a text with gaps, "[MASK:n]" for n tokens; `prompts` and `length` are then not used.
            num_samples: texts for each prompt, at least 1.
            steps: reverse steps, at least 1; some samplers take another number, see `Sampler.num_steps`.
            length: tokens in all; the training length by default. An infill has its own.
            sampler: another one than the model's own, or its name in conf/sampler.
            block_length: decide blocks of so many tokens from left to right, see `dlmkit.samplers.semi_autoregressive`;
                a model that was trained in blocks has its own.
            guidance: scale of classifier-free guidance by the given tokens, see `dlmkit.backbones.guided`; 0 for none.
            seed: of the noise.
            stop_at_eos: end each text at the first generated end of document.
            on_step: called after every step.
            settings: of the sampler, such as temperature=0.8.

        Raises:
            ValueError: a model without tokenizer, a sampler that does not fit it, requests that cannot be met.
        """
        requests = self.make_requests(prompts, infill, num_samples, length)
        chosen = self.choose_sampler(sampler, block_length, **settings)
        stop_id = self._text_tokenizer().eos_id if stop_at_eos else None
        began = time.perf_counter()
        done = self.complete(requests, steps, chosen, seed, on_step, guidance=guidance, stop_id=stop_id)
        seconds = time.perf_counter() - began
        num_free = [len(row) - sum(request.fixed) for row, request in zip(done.tokens, requests, strict=True)]
        return Texts(self.texts(done), done.tokens, num_free, done.passes, seconds)

    def make_requests(
        self,
        prompts: str | list[str] | None = None,
        infill: str | None = None,
        num_samples: int = 1,
        length: int | None = None,
    ) -> list[Request]:
        """Return `num_samples` requests for each prompt, or for the infill; arguments as in `generate`.

        Raises:
            ValueError: a model without tokenizer, no room behind a prompt, a text without gaps.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples {num_samples} is below 1: ask for at least one text")
        tokenizer = self._text_tokenizer()
        builder = RequestBuilder(self.backbone.predicts_first, tokenizer.eos_id)
        if infill is not None:
            return [builder.infill(infill, tokenizer)] * num_samples
        texts = [prompts] if isinstance(prompts, str) else prompts or [""]
        size = self.config.length if length is None else length
        asked = [builder.prompt(tokenizer.encode(text) if text else [], size) for text in texts]
        return [request for request in asked for _ in range(num_samples)]

    def texts(self, completions: Completions) -> list[str]:
        """Return the text of each completed request."""
        tokenizer = self._text_tokenizer()
        return [tokenizer.decode(row) for row in completions.tokens]

    def _text_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError("the model was trained on data without text: there is nothing to print")
        return self.tokenizer

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
        chosen = named_sampler(sampler) if isinstance(sampler, str) else sampler or self.sampler
        block_size = self.objective.block_size
        if block_size is not None and chosen.block_size is None and not isinstance(chosen.parameterization, NextToken):
            chosen = Blockwise(block_size, chosen)
        chosen = for_block_size(chosen, block_size).with_settings(**settings)
        if block_length is not None:
            chosen = _in_blocks(chosen, block_length)
        check(Parts(process=self.process, objective=self.objective, sampler=chosen))
        return chosen

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
        first: int = 0,
    ) -> Completions:
        """Return the token ids of each request, the sampler from `choose_sampler`; see `dlmkit.generation.complete`.

        Args:
            requests: what to complete.
            steps: reverse steps of each batch.
            sampler: the reverse step.
            seed: of the noise.
            on_step: called after every step.
            guidance: see `generate`.
            stop_id: id after which a text ends.
            batch_size: texts at a time.
            first: place of the first request among all.

        Raises:
            ValueError: guidance of a model, or with a sampler, that it does not fit.
        """
        denoiser = self.backbone if guidance == 0.0 else self._guided(guidance, sampler)
        return complete(
            self.backbone, self.process, sampler, requests, steps, seed, batch_size, on_step, stop_id, first, denoiser
        )

    def _guided(self, scale: float, sampler: Sampler[Any]) -> Guided:
        if not 0.0 < scale < float("inf"):
            raise ValueError(f"guidance {scale} is not a number of at least 0: use 0 for none, 1 for a usual scale")
        mask_id = self.process.mask_id
        if mask_id is None or self.backbone.causal:
            raise ValueError(
                f"guidance {scale} with {self.process.label}: the network has no prediction without the given tokens,"
                " which it has where masks can stand for them; set guidance to 0"
            )
        if sampler.block_size is not None:
            raise ValueError(f"guidance {scale} with {sampler.label}: blocks before are kept; set guidance to 0")
        return Guided(self.backbone, scale, mask_id)


@dataclass(frozen=True)
class Texts:
    """What `LoadedModel.generate` returns, each list in the order of the prompts.

    Attributes:
        texts: given parts included.
        tokens: their ids.
        num_generated: tokens of each text that were not given.
        passes: passes of the network that each text took part in (NFE).
        seconds: on the wall clock, for all of them.
    """

    texts: list[str]
    tokens: list[list[int]]
    num_generated: list[int]
    passes: list[int]
    seconds: float

    @property
    def tokens_per_pass(self) -> float:
        """Generated tokens over passes of the network, of all texts together."""
        return sum(self.num_generated) / max(1, sum(self.passes))


def _in_blocks(sampler: Sampler[Any], block_length: int) -> Sampler[Any]:
    if sampler.block_size is not None:
        if sampler.block_size == block_length:
            return sampler
        raise ValueError(
            f"block_length {block_length}: the model was trained in blocks of {sampler.block_size} tokens; leave it out"
        )
    if isinstance(sampler, SemiAutoregressive):
        return sampler.with_settings(block_length=block_length)
    return SemiAutoregressive(block_length, sampler)


def load(path: str | Path, trust: Sequence[str] = ()) -> LoadedModel:
    """Load a run folder, a checkpoint in it, or a Hugging Face folder.

    Args:
        path: the folder or the checkpoint.
        trust: packages, modules or classes, such as "my_parts", that the folder's configuration may name beside the
            kit's own parts; importing them runs their code.

    Raises:
        ValueError: nothing of the kind at `path`, a damaged file, a part that is not trusted, or weights that do not
            fit the configuration.
    """
    register_resolvers()
    path = Path(path)
    if is_folder(path):
        config, tokenizer = read_config(path, trust)
        return _with_parts(config, build_backbone(config), tokenizer)
    folder, file = runs.checkpoint_of(path)
    loaded = read_parts(folder / runs.CONFIG, trust)
    content = read_whole(file)
    block_size = content["settings"]["block_size"]
    if block_size is not None:  # it may have grown during training
        loaded.objective.block_size = block_size
    _build_without_pretrained(loaded, content, trust, file)
    backbone = build_backbone(loaded)
    _copy_weights(backbone, content, file)
    tokenizer = load_tokenizer(folder / "tokenizer", trust) if (folder / "tokenizer").is_dir() else None
    model = _with_parts(loaded, backbone, tokenizer)
    _restore({"process": model.process, "objective": model.objective}, content)
    return model


def _build_without_pretrained(config: DictConfig, content: dict[str, Any], trust: Sequence[str], file: Path) -> None:
    """Have a network whose weights are all in the checkpoint built from its configuration, not from another folder."""
    network = content["settings"].get("network")  # checkpoints of 0.2 and before have none
    if network is not None:
        check_targets(network, Part, trust, f"{file}: settings.network")
        config.backbone.name, config.backbone.config = None, network


def _with_parts(config: DictConfig, backbone: Backbone, tokenizer: Tokenizer | None) -> LoadedModel:
    objective = build_objective(config)
    sampler = for_block_size(build_sampler(config), objective.block_size)
    return LoadedModel(config, backbone.eval(), build_process(config), objective, sampler, tokenizer)


def _restore(parts: Mapping[str, Part], content: dict[str, Any]) -> None:
    """Give parts, and those inside them, the state that they have in a checkpoint."""
    for name, part in walk(parts):
        if isinstance(part, nn.Module):
            saved = content["state_dict"].items()
            prefix = f"{name}."
            part.load_state_dict({key.removeprefix(prefix): value for key, value in saved if key.startswith(prefix)})
        else:
            part.load_state_dict(content["parts"].get(name, {}))


def num_steps_of(file: Path) -> int:
    """Return the optimizer steps behind a checkpoint, without reading the rest of it."""
    return int(read_without_tensors(file)["global_step"])


def load_backbone_weights(backbone: Backbone, file: Path) -> None:
    """Copy the network's weights from a checkpoint file, every key and shape checked.

    Raises:
        ValueError: a damaged file; missing, extra or differently shaped weights.
    """
    _copy_weights(backbone, read_whole(file), file)


def _copy_weights(backbone: Backbone, content: dict[str, Any], file: Path) -> None:
    saved = content["state_dict"]
    weights = {key.removeprefix(BACKBONE): value for key, value in saved.items() if key.startswith(BACKBONE)}
    own, expected = backbone.state_dict(), backbone.weights_to_save()
    for kind, keys in (("lacks", expected - weights.keys()), ("has an unexpected", weights.keys() - own.keys())):
        if keys:
            raise ValueError(
                f"{file} {kind} weight {min(keys)}: it was made by another kind of backbone; set the same one"
            )
    for key, value in weights.items():
        if own[key].shape != value.shape:
            raise ValueError(
                f"{file} has {key} of shape {tuple(value.shape)}, this backbone needs {tuple(own[key].shape)}:"
                " use the same backbone sizes and tokenizer as the run it comes from"
            )
    if backbone.deferred is None:
        backbone.load_state_dict({**own, **weights})
        return
    for key, parameter in backbone.named_parameters():
        if key in weights:
            backbone.deferred.read_from(parameter, lambda rows, value=weights[key]: value[rows])  # type: ignore[misc]
