"""One training step on fake tensors, with the bytes that are alive at each moment of it.

Fake tensors have sizes and no values (torch's FakeTensorMode), so that a step of any size runs on any machine, through
the network's own code, autograd, autocast and checkpointing.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import Variable
from torch.overrides import TorchFunctionMode

from dlmkit.backbones.attention import plain_mask
from dlmkit.backbones.base import Backbone
from dlmkit.backbones.block_layout import block_layout
from dlmkit.backbones.head import HeadPrediction
from dlmkit.backbones.hf.fake import plain_positions
from dlmkit.objectives.block import num_blocks
from dlmkit.planning.head import HeadBuffers, HeadStandIn, Way, head_buffer_bytes, way_of
from dlmkit.planning.job import Job
from dlmkit.planning.live import LiveBytes
from dlmkit.step import network_input
from dlmkit.types import CAUSAL_ATTENTION, NetworkInput, Noised

PHASES = ("forward", "head", "head backward", "top", "bottom", "below")
"""Of a step: the trunk's forward pass, the head's two, the backward pass of the uppermost layer (with what is above
it), that of the lowest one, and that of what is below the layers."""


@dataclass(frozen=True)
class Counts:
    """Bytes of one step of one micro-batch, weights and what the optimizer and the ranks hold left out.

    Attributes:
        start: gradients of earlier micro-batches; they are in `history` too.
        saved: kept by the trunk for the backward pass.
        history: bytes alive after each time that they grew, by phase; without the buffers of the head.
        heads: a head for each pass through the network.
    """

    start: int
    saved: int
    history: dict[str, list[int]]
    heads: list[HeadShape]


@dataclass(frozen=True)
class HeadShape:
    """Where the head runs, and how.

    Attributes:
        per_sequence: positions of a sequence at which the head runs.
        vocab_size: V.
        width: D.
        way: how the objective runs it.
    """

    per_sequence: float
    vocab_size: int
    width: int
    way: Way

    def buffers(self, micro_size: int, device_type: str, low: bool) -> HeadBuffers:
        """Return its buffers for `micro_size` sequences."""
        num = max(1, round(self.per_sequence * micro_size))
        return head_buffer_bytes(num, self.vocab_size, self.width, self.way, device_type, low)


def count(job: Job, backbone: Backbone, micro_size: int) -> Counts:
    """Return the bytes of a step of `micro_size` sequences.

    Args:
        job: what is planned.
        backbone: on the meta device.
        micro_size: sequences at a time.
    """
    fake = copy.deepcopy(backbone).train()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make_fake(fake, job.precision.weights)
            step = FakeStep(job, fake)
            with plain_positions(), step.live, KernelsOf(job.device_type):
                return step.run(micro_size)
    finally:
        for cached in (block_layout, plain_mask):  # they may hold fake masks now
            cached.cache_clear()


def make_fake(network: nn.Module, dtype: torch.dtype) -> None:
    """Put fake tensors in the place of a network's weights and buffers, those that are shared once."""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            kind = dtype if tensor.is_floating_point() else tensor.dtype
            one = torch.empty(tensor.shape, dtype=kind, device="cpu")
            made[id(tensor)] = nn.Parameter(one, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else one
        return made[id(tensor)]

    for module in network.modules():
        for own in (module._parameters, module._buffers):
            own.update({name: fake(tensor) for name, tensor in own.items() if tensor is not None})  # type: ignore[misc]


class KernelsOf(TorchFunctionMode):
    """Lets dropout take the memory that it takes on a GPU: a byte for each element, and none inside of attention."""

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self.is_cpu = device_type == "cpu"

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self.is_cpu:
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention and kwargs.get("dropout_p"):
            kwargs["dropout_p"] = 0.0
        if func is F.dropout:
            return _dropout(*args, **kwargs)
        return func(*args, **kwargs)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, True)[0] if training and p else input


class FakeStep:
    """A step whose phases are counted."""

    def __init__(self, job: Job, network: Backbone) -> None:
        self.job = job
        self.network = network
        self.trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.live = LiveBytes([*network.parameters(), *network.buffers()])
        self.heads: list[HeadShape] = []
        self.shard = 1 / job.ranks if job.strategy == "fsdp2" else 1.0
        self._watch_layers()

    def run(self, micro_size: int) -> Counts:
        """Return the bytes of a step of `micro_size` sequences."""
        live, job = self.live, self.job
        live.enter("forward")
        if job.accumulate > 1:
            self._keep_gradients()
        start = live.now
        with torch.autocast("cpu", job.precision.products, enabled=job.precision.autocast):
            predictions = [self._predict(one) for one in self._passes(micro_size)]
            saved = live.now - start
            live.enter("head")
            values = [self._head(one, micro_size, auxiliary=index > 0) for index, one in enumerate(predictions)]
        del predictions
        live.enter("head backward")
        # Not torch.autograd.backward, in which modes of torch functions are off, so also where layers are recomputed.
        Variable._execution_engine.run_backward(
            tuple(values), tuple(torch.empty_like(value) for value in values), False, False, (), True, True
        )
        return Counts(start, saved, dict(live.history), self.heads)

    def _passes(self, micro_size: int) -> list[NetworkInput]:
        """Return what the network reads in a step: for the loss, and for an auxiliary next-token loss."""
        job, rows = self.job, micro_size * self.job.corruption.num_copies
        tokens = torch.zeros(rows, job.length, dtype=torch.int64)
        blocks = num_blocks(job.length, job.block_size)
        t = torch.zeros((rows, blocks) if blocks > 1 else rows, dtype=torch.float64)
        passes = [network_input(job.objective, Noised(tokens, tokens, t, tokens.bool(), torch.ones_like(t)))]
        if job.ar_weight:
            passes.append(NetworkInput(tokens[:micro_size], t[:micro_size], attention=CAUSAL_ATTENTION))
        return passes

    def _predict(self, inputs: NetworkInput) -> HeadPrediction:
        prediction = self.network(inputs)
        assert isinstance(prediction, HeadPrediction)
        return prediction

    def _head(self, prediction: HeadPrediction, micro_size: int, auxiliary: bool) -> Tensor:
        """Return the values [N] of a stand-in for the head."""
        job, hidden, head = self.job, prediction.hidden, prediction.head
        noisy = job.objective.noisy_positions_only and job.process.mask_only and not auxiliary
        num = max(1, round(hidden.shape[0] * hidden.shape[1] * (job.noisy_share if noisy else 1.0)))
        chosen = hidden.flatten(0, 1)[torch.empty(num, dtype=torch.int64)]
        way: Way = "fused" if auxiliary and head.is_linear else way_of(job.objective, head.is_linear)
        self.heads.append(HeadShape(num / micro_size, head.weight.shape[0], head.weight.shape[1], way))
        values: Tensor = HeadStandIn.apply(chosen, head.weight, way, lambda: self.live.enter("top"))
        return values

    # layer by layer

    def _watch_layers(self) -> None:
        """Have phases end, and shards take the place of gradients, where the gradients of a layer are complete."""
        self.units = self.network.sharding_units()
        missing: dict[int, set[int]] = {}
        for index, unit in enumerate(self.units):
            own = [parameter for parameter in unit.parameters() if parameter.requires_grad]
            missing[index] = {id(parameter) for parameter in own}
            for parameter in own:
                parameter.register_post_accumulate_grad_hook(self._noting(index, missing[index], own))

    def _noting(self, index: int, missing: set[int], own: list[nn.Parameter]) -> Any:
        def note(parameter: Tensor) -> None:
            missing.discard(id(parameter))
            if not missing:
                if self.shard < 1.0:
                    self._scatter(own)
                self.live.enter({0: "below", 1: "bottom"}.get(index, "between"))

        return note

    def _keep_gradients(self) -> None:
        """Count the gradients that earlier micro-batches have left."""
        if self.shard == 1.0:
            for parameter in self.trained:
                parameter.grad = torch.empty_like(parameter)
        else:
            self.live.add(round(self.shard * nbytes(self.trained)))

    def _scatter(self, parameters: list[nn.Parameter]) -> None:
        """Count shards in the place of whole gradients, unless they are there already."""
        for parameter in parameters:
            parameter.grad = None
        if self.job.accumulate == 1:
            self.live.add(round(self.shard * nbytes(parameters)))


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
