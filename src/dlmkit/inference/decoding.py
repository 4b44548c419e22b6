"""How texts are decoded: everything but the model and what is asked for."""

from __future__ import annotations

from dataclasses import Field, dataclass, fields, is_dataclass
from typing import Any

from dlmkit.generation import BATCH_SIZE
from dlmkit.inference.choice import Guidance
from dlmkit.parts import Part
from dlmkit.ranges import Count, Tokens, check_fields
from dlmkit.samplers.base import Sampler


@dataclass(frozen=True)
class Decoding:
    """How texts are made.

    Attributes:
        sampler: from `LoadedModel.choose_sampler`.
        steps: reverse steps, at least 1.
        length: tokens in all of a continued text; ``None`` for the training length.
        num_samples: texts for each prompt.
        seed: of the noise.
        guidance: scale of classifier-free guidance, 0 for none.
        stop_at_eos: whether texts end at the first end of document.
        batch_size: texts at a time.
    """

    sampler: Sampler[Any]
    steps: Count = 64
    length: Tokens | None = None
    num_samples: Count = 1
    seed: int = 0
    guidance: Guidance = 0.0
    stop_at_eos: bool = False
    batch_size: Count = BATCH_SIZE

    def __post_init__(self) -> None:
        check_fields(self)

    def described(self) -> dict[str, Any]:
        """Return what of it decides a text, by dotted names; the length of an infill is its own."""
        left_out = ("sampler", "length", "batch_size")
        settings = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in left_out}
        return {**described("sampler", self.sampler), **settings}


def described(name: str, part: Part) -> dict[str, Any]:
    """Return a part and its settings by dotted names: {"sampler": "ancestral", "sampler.top_k": None, ...}."""
    known: dict[str, Any] = {name: part.name}
    settings: tuple[Field[Any], ...] = fields(part) if is_dataclass(part) else ()
    for field in settings:
        key, value = f"{name}.{field.name}", getattr(part, field.name)
        known |= described(key, value) if isinstance(value, Part) else {key: value}
    return known
