"""Which parts fit together: the one place that decides it, for building runs, for `dlmkit check` and for the tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dlmkit.backbones.base import Backbone
from dlmkit.corruption.base import Corruption
from dlmkit.objectives.base import Objective
from dlmkit.objectives.block import num_blocks
from dlmkit.parameterizations.base import Parameterization
from dlmkit.parameterizations.next_token import NextToken
from dlmkit.parameterizations.score import Score
from dlmkit.processes.base import ForwardProcess
from dlmkit.samplers.base import Sampler


@dataclass(frozen=True)
class Parts:
    """Parts of one run; what is ``None`` is not looked at.

    Attributes:
        process: the noise.
        objective: loss and bound.
        corruption: how noise is drawn for training.
        sampler: the reverse step.
        backbone: the network.
        length: L, tokens of a sequence.
        ar_weight: of the auxiliary next-token loss, at least 0.
    """

    process: ForwardProcess | None = None
    objective: Objective[Any] | None = None
    corruption: Corruption | None = None
    sampler: Sampler[Any] | None = None
    backbone: Backbone | None = None
    length: int | None = None
    ar_weight: float = 0.0


def check(parts: Parts) -> None:
    """Raise ValueError with the first problem.

    Raises:
        ValueError: the parts do not fit together.
    """
    for problem in problems(parts):
        raise ValueError(problem)


def fit(parts: Parts) -> bool:
    """Return whether the parts fit together."""
    return next(problems(parts), None) is None


def problems(parts: Parts) -> Iterator[str]:
    """Yield why the parts do not fit together, each with a remedy, in one line."""
    process, objective, corruption = parts.process, parts.objective, parts.corruption
    if process is not None and objective is not None:
        yield from _objective_and_process(objective, process)
    if process is not None and corruption is not None:
        yield from _corruption_and_process(corruption, process)
    if objective is not None and corruption is not None:
        yield from _objective_and_corruption(objective, corruption)
    if parts.sampler is not None and objective is not None:
        yield from _sampler_and_objective(parts.sampler, objective, process)
    if parts.sampler is not None and process is not None:
        yield from _sampler_and_process(parts.sampler, process)
    if objective is not None and parts.length is not None:
        yield from _objective_and_length(objective, parts.length)
    if parts.backbone is not None:
        yield from _backbone(parts.backbone, parts)


def _objective_and_process(objective: Objective[Any], process: ForwardProcess) -> Iterator[str]:
    pair = f"{objective.label} with {process.label}"
    if objective.exact:
        if process.has_noise:
            yield f"{pair}: the baseline reads clean tokens; set process=none (or family=ar)"
    elif not process.has_noise:
        yield f"{pair}: there is nothing to denoise; set objective=autoregressive"
    elif not isinstance(process, objective.requires):
        if isinstance(objective.parameterization, Score):
            yield (
                f"{pair}: scores are for absorbing and for uniform noise; set process=absorbing or process=uniform, or"
                " another objective"
            )
        else:
            name = objective.requires.name
            yield f"{pair}: the closed form holds for {name} noise only; set process={name}, or objective=elbo"


def _corruption_and_process(corruption: Corruption, process: ForwardProcess) -> Iterator[str]:
    if not isinstance(process, corruption.requires):
        yield (
            f"{corruption.label} with {process.label}: it draws {corruption.requires.name} noise only; set"
            f" process={corruption.requires.name}, or corruption=independent"
        )


def _objective_and_corruption(objective: Objective[Any], corruption: Corruption) -> Iterator[str]:
    pair = f"{objective.label} with {corruption.label}"
    if not corruption.independent and not objective.divides_by_noise_rate:
        yield (
            f"{pair}: at one t tokens are not noised independently, which this bound needs; set objective=masked, or"
            " corruption=independent"
        )
    if corruption.num_copies > 1 and objective.num_steps is not None:
        yield f"{pair}: the times of its copies are not among the steps; set corruption=independent"


def _sampler_and_objective(
    sampler: Sampler[Any], objective: Objective[Any], process: ForwardProcess | None
) -> Iterator[str]:
    needed, trained = sampler.parameterization, objective.parameterization
    agrees = type(needed) is type(trained) if process is None else needed.agrees_with(trained, process)
    if not agrees:
        yield (
            f"{sampler.label} expects a network that predicts {needed.name!r}, {objective.label} trains one that"
            f" predicts {trained.name!r}: set sampler={_sampler_for(trained)}"
        )
    if sampler.block_size != objective.block_size:
        size = objective.block_size
        remedy = _sampler_for(trained) if size is None else f"blockwise sampler.block_size={size}"
        yield (
            f"{sampler.label} generates in blocks of {sampler.block_size or 'all'} tokens, {objective.label} trains in"
            f" blocks of {size or 'all'}: set sampler={remedy}"
        )


def _sampler_for(parameterization: Parameterization) -> str:
    if isinstance(parameterization, NextToken):
        return "autoregressive"
    return "score_analytic" if isinstance(parameterization, Score) else "ancestral"


def _sampler_and_process(sampler: Sampler[Any], process: ForwardProcess) -> Iterator[str]:
    if isinstance(sampler.parameterization, NextToken) == process.has_noise:
        remedy = "ancestral" if process.has_noise else "autoregressive"
        yield f"{sampler.label} with {process.label}: set sampler={remedy}, or process={_other(process)}"

    if sampler.needs_masks and not process.mask_only:
        yield (
            f"{sampler.label} with {process.label}: it decides masks, and this noise leaves tokens that may be wrong;"
            " set sampler=ancestral, or process=absorbing"
        )


def _other(process: ForwardProcess) -> str:
    return "none" if process.has_noise else "absorbing"


def _objective_and_length(objective: Objective[Any], length: int) -> Iterator[str]:
    try:
        num_blocks(length, objective.block_size)
    except ValueError as error:
        yield str(error)


def _backbone(backbone: Backbone, parts: Parts) -> Iterator[str]:
    process, objective = parts.process, parts.objective
    if objective is not None and objective.block_size is not None and not backbone.supports_context:
        yield (
            f"{backbone.label} reads no clean context, which {objective.label} needs: take backbone=hf or dit_tiny, or"
            " set supports_context where `forward` reads NetworkInput.context (see Backbone.trunk_input)"
        )
    if process is not None and process.vocab_size != backbone.vocab_size:
        yield (
            f"process.vocab_size {process.vocab_size} is not backbone.vocab_size {backbone.vocab_size}: leave both to"
            " the tokenizer"
        )
    if process is not None and None not in (process.mask_id, backbone.mask_id) and process.mask_id != backbone.mask_id:
        yield (
            f"process.mask_id {process.mask_id} is not backbone.mask_id {backbone.mask_id}: leave both to the tokenizer"
        )
    if objective is not None and backbone.causal != objective.exact:
        yield (
            f"causal={str(backbone.causal).lower()} does not fit {objective.label}: an autoregressive objective needs"
            " causal=true, a diffusion objective causal=false; family=NAME sets both"
        )
    if not 0.0 <= parts.ar_weight < float("inf"):
        yield f"ar_weight {parts.ar_weight} is not a number of at least 0: use 0 for no auxiliary loss"
    elif parts.ar_weight > 0 and (backbone.causal or not backbone.shift):
        yield (
            f"ar_weight {parts.ar_weight} above 0 needs a diffusion objective on a shifted backbone"
            " (backbone.shift=true), whose outputs predict the next token"
        )
