"""Which sampler and which denoiser a trained model is decoded with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch

from dlmkit.backbones.base import Backbone
from dlmkit.backbones.guided import Guided
from dlmkit.build import named_sampler
from dlmkit.compatibility import Parts
from dlmkit.compatibility import check as check_parts
from dlmkit.generation import for_block_size
from dlmkit.objectives.base import Objective
from dlmkit.parameterizations.next_token import NextToken
from dlmkit.processes.base import ForwardProcess
from dlmkit.ranges import Range, Tokens, check
from dlmkit.samplers.base import Sampler
from dlmkit.samplers.blockwise import Blockwise
from dlmkit.samplers.semi_autoregressive import SemiAutoregressive
from dlmkit.types import Denoiser

Guidance = Annotated[float, Range("[0, 1000]", "use 0 for none, 1 for a usual scale")]


def chosen_sampler(
    sampler: Sampler[Any] | str,
    process: ForwardProcess,
    objective: Objective[Any],
    block_length: int | None,
    settings: Mapping[str, Any],
) -> Sampler[Any]:
    """Return a sampler that fits a model, see `LoadedModel.choose_sampler`.

    Args:
        sampler: a sampler, or its name in conf/sampler.
        process: the model's noise.
        objective: what the model was trained by.
        block_length: positions to decide before later ones.
        settings: of the sampler.

    Raises:
        ValueError: an unknown name or setting, or a sampler that does not fit the model.
    """
    chosen = named_sampler(sampler) if isinstance(sampler, str) else sampler
    block_size = objective.block_size
    if block_size is not None and chosen.block_size is None and not isinstance(chosen.parameterization, NextToken):
        if isinstance(chosen, SemiAutoregressive):
            raise ValueError(
                f"{chosen.label}: the model was trained in blocks of {block_size} tokens, which are decided from left"
                " to right already; take the sampler inside a block alone, such as confidence"
            )
        chosen = Blockwise(block_size, chosen)
    chosen = for_block_size(chosen, block_size)
    check_parts(Parts(process=process, objective=objective, sampler=chosen))  # before its settings are looked at
    if block_length is not None:
        chosen = _in_blocks(chosen, block_length)
    chosen = chosen.with_settings(**settings)
    check_parts(Parts(process=process, objective=objective, sampler=chosen))
    return chosen


def _in_blocks(sampler: Sampler[Any], block_length: int) -> Sampler[Any]:
    check("block_length", block_length, Tokens)
    if isinstance(sampler.parameterization, NextToken):
        raise ValueError(
            f"block_length {block_length} with {sampler.label}: it decides one token after the other anyway; leave it"
            " out"
        )
    if sampler.block_size is not None:
        if sampler.block_size == block_length:
            return sampler
        raise ValueError(
            f"block_length {block_length}: the model was trained in blocks of {sampler.block_size} tokens; leave it out"
        )
    if isinstance(sampler, SemiAutoregressive):
        return sampler.with_settings(block_length=block_length)
    return SemiAutoregressive(block_length, sampler)


def guided(backbone: Backbone, process: ForwardProcess, sampler: Sampler[Any], scale: float) -> Denoiser:
    """Return the network, with classifier-free guidance where `scale` is not 0.

    Args:
        backbone: the network.
        process: the noise that it was trained on.
        sampler: that will call it.
        scale: of the guidance, at least 0.

    Raises:
        ValueError: a scale outside its range, or a network or sampler without an unconditional prediction.
    """
    check("guidance", scale, Guidance)
    if scale == 0:
        return backbone
    if backbone.causal or not _has_masks(process):
        raise ValueError(
            f"guidance {scale} with {process.label}: the network has no prediction without the given tokens, which it"
            " has where masks can stand for them; set guidance to 0"
        )
    if sampler.block_size is not None:
        raise ValueError(f"guidance {scale} with {sampler.label}: blocks before are kept; set guidance to 0")
    assert process.mask_id is not None
    return Guided(backbone, scale, process.mask_id)


def _has_masks(process: ForwardProcess) -> bool:
    """Return whether a network was trained on masks: the noise has some at t = 1."""
    if process.mask_id is None or not process.has_noise:
        return False
    return bool(process.coefficients(torch.ones(1, dtype=torch.float64)).mass[0, process.mask_id] > 0)
