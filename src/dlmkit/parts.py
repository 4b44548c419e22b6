"""What all swappable parts have in common: a name that users type, and state that training may change."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dlmkit.types import StepOutput


class Part:
    """A schedule, process, corruption, objective, time sampler, sampler or backbone.

    A part that learns from training (a density of times, a counter, a loss scale) overrides `collect` and `update`;
    the module calls them on every part alike. One with weights of its own (a learned weight, a frozen teacher) derives
    from ``torch.nn.Module`` first and from its base class second, such as ``class Distilled(nn.Module, Objective)``:
    its trainable parameters then reach the optimizer, all of its tensors move with the model and are in the checkpoint,
    and an export leaves them out.
    """

    group: ClassVar[str]
    """The configuration group, such as "objective"."""

    name: ClassVar[str]
    """The name that users type, that of the YAML file; by default the class's name in snake case."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        if issubclass(cls, nn.Module) and cls.state_dict is Part.state_dict:
            raise TypeError(
                f"{cls.__name__}: derive from nn.Module first, as in `class {cls.__name__}(nn.Module, ...)`"
            )

    @property
    def label(self) -> str:
        """The part as users type it: "objective=masked"."""
        return f"{self.group}={self.name}"

    def inner_parts(self) -> Mapping[str, Part]:
        """Return the parts that this one is built around, by attribute name."""
        return {}

    def collect(self, output: StepOutput) -> Tensor:
        """Return what `update` needs of a micro-batch, as sums: float64 [S] on the CPU, S = 0 for nothing."""
        return torch.zeros(0, dtype=torch.float64)

    def update(self, totals: Tensor) -> None:
        """Learn from what `collect` returned, [S], summed over all ranks and accumulation steps.

        Called once per optimizer step, before the step. Between two calls what the part's other methods return must
        depend on their arguments alone.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint; ``nn.Module`` has its own."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        """Restore what `state_dict` returned."""


def walk(parts: Mapping[str, Part]) -> Iterator[tuple[str, Part]]:
    """Yield (name, part) of the parts and of those inside them; an inner part is named after both,

    as in "objective_within" for the attribute `within` of the part "objective"."""
    for name, part in parts.items():
        yield name, part
        yield from walk({f"{name}_{key}": inner for key, inner in part.inner_parts().items()})


def states(parts: Mapping[str, Part]) -> dict[str, dict[str, Any]]:
    """Return name -> state for a checkpoint, of the parts that have any; a module's weights are the model's."""
    found = {name: part.state_dict() for name, part in parts.items() if not isinstance(part, nn.Module)}
    return {name: state for name, state in found.items() if state}


def load_states(parts: Mapping[str, Part], saved: Mapping[str, Mapping[str, Any]]) -> None:
    """Restore what `states` returned."""
    for name, part in parts.items():
        if not isinstance(part, nn.Module):
            part.load_state_dict(saved.get(name, {}))
