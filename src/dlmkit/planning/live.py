"""Counting the bytes that are alive while torch runs, on real tensors or on fake ones."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make, from their making to the end of their last tensor.

    What a kernel takes and gives back inside one operation is not seen, nor what an allocator rounds up.

    Args:
        known: tensors that are not counted, such as weights.

    Attributes:
        now: bytes alive.
        phase: name of what is being done.
        history: bytes alive after each time that they grew, by phase.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = 0
        self.phase = ""
        self.history: dict[str, list[int]] = defaultdict(list)
        self._alive: dict[int, Any] = {}
        self._known = [tensor.untyped_storage() for tensor in known]  # kept, so that no id is used again
        self._known_ids = {id(storage) for storage in self._known}

    def add(self, num_bytes: int) -> None:
        """Count bytes that no tensor stands for; negative ones to take them away."""
        self.now += num_bytes
        self.history[self.phase].append(self.now)

    def enter(self, phase: str) -> None:
        """Name what is done from now on."""
        self.phase = phase
        self.add(0)

    @property
    def peak(self) -> int:
        """The most bytes that were alive."""
        return max((max(values) for values in self.history.values()), default=0)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it made."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._track(leaf)
        return out

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._alive or key in self._known_ids:
            return
        num_bytes = storage.nbytes()
        self._alive[key] = weakref.finalize(storage, self._gone, key, num_bytes)
        self.add(num_bytes)

    def _gone(self, key: int, num_bytes: int) -> None:
        del self._alive[key]
        self.now -= num_bytes
