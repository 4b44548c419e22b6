"""Networks without their weights: what makes each weight is recorded, so that a process makes only what it keeps.

A network that is split over devices must never be whole on one of them. Built inside `DeferredWeights`, its parameters
are on the meta device; the operations that would have filled them, with the states of torch's generator, or the files
that hold them, are kept instead. `make` then gives one parameter at a time, with the numbers that it has in a network
that is built as usual from the same seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

EMPTY = ("aten::empty.memory_format", "aten::empty_strided")
OVERWRITES = ("aten::normal_", "aten::uniform_", "aten::zero_", "aten::fill_", "aten::copy_")
"""Operations that leave nothing of what was there."""

Fill = Callable[[Tensor], object]
"""Changes a whole parameter, on the CPU, in place."""
Read = Callable[[slice], Tensor]
"""Gives rows of a parameter, such as those of a tensor in a file."""
ALL = slice(None)
ALIGNMENT = 64  # bytes
STATES = 256  # of the generator, in one block of 1.3 MB

_active: list[DeferredWeights] = []


@dataclass(frozen=True)
class _View:
    """A part of a parameter."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor) -> _View:
        return cls(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    def inside(self, whole: Tensor) -> Tensor:
        return whole.as_strided(self.size, self.stride, self.offset)


@dataclass(frozen=True)
class _Other:
    """An argument that is a part of another parameter, as it is at that time."""

    view: _View
    recipe: _Recipe

    def make(self) -> Tensor:
        return self.view.inside(self.recipe.make())


@dataclass
class _Recipe:
    """How a parameter is made: read, or empty, and then filled, in turn."""

    size: tuple[int, ...]
    dtype: torch.dtype
    read: Read | None = None
    fills: list[Fill] = field(default_factory=list)

    def make(self, rows: slice = ALL) -> Tensor:
        if self.read is not None and not self.fills:
            return self.read(rows).to(self.dtype)
        whole = torch.empty(self.size, dtype=self.dtype, device="cpu")
        if self.read is not None:
            whole.copy_(self.read(ALL))
        for fill in self.fills:
            fill(whole)
        return whole[rows] if self.size else whole

    def snapshot(self) -> _Recipe:
        return replace(self, fills=list(self.fills))


class DeferredWeights(TorchDispatchMode):
    """A context in which networks are built without weights; afterwards it makes them.

    Buffers, which are small, are built as usual. A random number generator that is not torch's own is not supported.

    Attributes:
        drawing: whether random fills draw their numbers, so that what is built later finds torch's generator as in a
            usual build; false where all weights are read from files.
    """

    def __init__(self) -> None:
        super().__init__()
        self.drawing = True
        self._recipes: dict[int, _Recipe] = {}
        self._kept: list[Any] = []  # storages, whose addresses are the keys
        self._empty: dict[int, Any] = {}
        self._hook: Any = None
        self._states = torch.empty(0)
        self._num_states = 0
        self._scratch = torch.empty(0, dtype=torch.uint8)

    @override
    def __enter__(self) -> DeferredWeights:
        self._hook = register_module_parameter_registration_hook(self._defer)  # type: ignore[arg-type]
        _active.append(self)
        super().__enter__()
        return self

    @override
    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hook.remove()
        _active.remove(self)
        self._empty.clear()
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def make(self, parameter: Tensor, rows: slice = ALL) -> Tensor:
        """Return a parameter that was built here, or some of its rows, on the CPU; of a file only these are read."""
        with torch.no_grad():
            return self._recipes[_key(parameter)].make(rows)

    def is_deferred(self, tensor: Tensor) -> bool:
        """Return whether a tensor is a parameter that was built here, or a part of one."""
        return tensor.is_meta and _key(tensor) in self._recipes

    def read_from(self, parameter: Tensor, read: Read) -> None:
        """Let a parameter be what `read` gives, such as a tensor in a file."""
        self._recipes[_key(parameter)] = _Recipe(tuple(parameter.shape), parameter.dtype, read)

    def change(self, parameter: Tensor, fill: Fill) -> None:
        """Let a parameter be changed by `fill` once it is made."""
        self._recipes[_key(parameter)].fills.append(fill)

    def _defer(self, module: nn.Module, name: str, parameter: Any) -> nn.Parameter | None:
        """Put a parameter on the meta device when a module takes it."""
        if parameter is None or self.is_deferred(parameter):
            return None
        made = parameter
        if not parameter.is_meta:
            made = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
        self._recipes[_key(made)] = _Recipe(tuple(made.shape), made.dtype)
        self._kept.append(made.untyped_storage())
        if made is parameter:
            return None
        if self._empty.pop(_key(parameter), None) is None:  # filled before it became a parameter
            value = parameter.detach().clone()
            self.read_from(made, lambda rows: value[rows] if value.ndim else value)
        return made

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record what fills a parameter; everything else runs."""
        kwargs = kwargs or {}
        written = [args[i] for i, argument in enumerate(func._schema.arguments) if _writes(argument) and i < len(args)]
        target = written[0] if len(written) == 1 and isinstance(written[0], Tensor) else None
        if target is not None and self.is_deferred(target):
            self._record(func, target, args[1:], kwargs)
            return target
        if target is not None:
            self._empty.pop(_key(target), None)
        result = func(*args, **kwargs)
        if func.name() in EMPTY and not result.is_meta:
            self._empty[_key(result)] = result.untyped_storage()
        return result

    def _record(self, func: Any, target: Tensor, args: Any, kwargs: Any) -> None:
        recipe, view = self._recipes[_key(target)], _View.of(target)
        arguments = [self._argument(value) for value in args]
        state = None
        if torch.Tag.nondeterministic_seeded in func.tags and self.drawing:
            assert kwargs.get("generator") is None
            state = self._keep_state()
            func(self._scratch_like(target), *args, **kwargs)

        def fill(whole: Tensor) -> None:
            made = [value.make() if isinstance(value, _Other) else value for value in arguments]
            with _generator_at(state):
                func(view.inside(whole), *made, **kwargs)

        is_whole = view == _View.of(torch.empty(recipe.size, device="meta"))
        if is_whole and func.name().partition(".")[0] in OVERWRITES:
            recipe.fills.clear()
            recipe.read = None
        recipe.fills.append(fill)

    def _keep_state(self) -> Tensor:
        """Return the generator's state, stored among others: small blocks between large ones would waste memory."""
        state = torch.get_rng_state()
        if self._num_states % STATES == 0:
            self._states = torch.empty(STATES, *state.shape, dtype=state.dtype)
        kept = self._states[self._num_states % STATES]
        self._num_states += 1
        return kept.copy_(state)

    def _scratch_like(self, target: Tensor) -> Tensor:
        """Return a tensor of the shape and strides of a parameter or a part of one, in a place that is used again."""
        needed = -(-target.untyped_storage().nbytes() // ALIGNMENT) * ALIGNMENT
        if self._scratch.numel() < needed:
            self._scratch = torch.empty(needed, dtype=torch.uint8)
        return self._scratch.view(target.dtype).as_strided(target.shape, target.stride())

    def _argument(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_meta:
            return value
        return _Other(_View.of(value), self._recipes[_key(value)].snapshot())


def _writes(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def _generator_at(state: Tensor | None) -> Iterator[None]:
    """Set torch's generator to a state, and back."""
    if state is None:
        yield
        return
    now = torch.get_rng_state()
    torch.set_rng_state(state.clone())  # torch reads past a state inside a block
    try:
        yield
    finally:
        torch.set_rng_state(now)


def deferring() -> DeferredWeights | None:
    """Return the context that a network is being built in, or ``None``."""
    return _active[-1] if _active else None
