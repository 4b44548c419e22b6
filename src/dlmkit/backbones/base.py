"""The interface of networks: noisy tokens in, a prediction of the clean tokens out."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from dlmkit.backbones.alignment import Alignment
from dlmkit.backbones.deferred import DeferredWeights, deferring
from dlmkit.backbones.inputs import TrunkInput, trunk_input
from dlmkit.parts import Part
from dlmkit.prefix import RereadsPrefix
from dlmkit.types import NetworkInput, Prediction


class Backbone(nn.Module, RereadsPrefix, Part, ABC):
    """A network that reads x_t [B, L] and predicts every x_0[i]; a :class:`dlmkit.types.Denoiser`.

    Args:
        vocab_size: V, mask token included.
        mask_id: id of the mask token, or ``None`` where the process has none.
        causal: attend to the past alone (the autoregressive baseline).
        shift: whether outputs are aligned as in a causal LM, see :class:`Alignment`.
        bos_id: id prepended to every sequence when ``shift``; ``None``: nothing is prepended.

    Raises:
        ValueError: an id outside of the vocabulary, or a causal network without shift.
    """

    group = "backbone"

    supports_context: bool = False
    """Whether `NetworkInput.context` is read, as block diffusion needs."""

    saves_frozen: bool = True
    """Whether a checkpoint holds weights that are not trained; false where they come from a pretrained model."""

    pretrained_config: dict[str, Any] | None = None
    """`config` of a pretrained network whose weights are all in a checkpoint: it is built again from that, without the
    model's folder. ``None`` for any other network."""

    remarks: tuple[str, ...] = ()
    """What a user who begins to train it should know of how it was made; a line each."""

    def __init__(self, vocab_size: int, mask_id: int | None, causal: bool, shift: bool, bos_id: int | None) -> None:
        super().__init__()
        check_token_id("mask_id", mask_id, vocab_size)
        check_token_id("bos_id", bos_id, vocab_size)
        if causal and not shift:
            raise ValueError(
                "causal=true with shift=false: a causal network attends to token i at position i and would copy it;"
                " set backbone.shift=true"
            )
        self.vocab_size = vocab_size
        self.mask_id = mask_id
        self.alignment = Alignment(causal, shift, bos_id)

    deferred: DeferredWeights | None = None
    """Makes the weights of a network that was built without them, which are then on the meta device."""

    @abstractmethod
    def forward(self, inputs: NetworkInput) -> Prediction:
        """Return the prediction at the positions of `inputs.x_t` (int64 [B, L]); row i is about token i.

        Raises:
            ValueError: the sequence is longer than `max_length`.
        """

    @abstractmethod
    def flops_per_token(self, length: int, head_fraction: float) -> float:
        """Return forward + backward floating-point operations per token of a sequence of `length`.

        Args:
            length: L.
            head_fraction: share of the positions at which the objective runs the head, in [0, 1].
        """

    @property
    @abstractmethod
    def max_length(self) -> int:
        """The longest sequence L, in tokens, that the network reads (a prepended BOS not counted)."""

    def check_length(self, length: int) -> None:
        """Raise ValueError when sequences of `length` tokens are too long for the network."""
        if length > self.max_length:
            raise ValueError(
                f"length {length} is more than this backbone's {self.max_length} positions for tokens: set length to"
                f" at most {self.max_length}, or take a backbone with more positions"
            )

    def sharding_units(self) -> list[nn.Module]:
        """Return the layers that are sharded one by one; none unless a backbone has any."""
        return []

    def tensor_parallel_plan(self, num_processes: int) -> dict[str, str]:
        """Return module (a name, * for a number) -> "colwise" or "rowwise": how its product is shared by processes.

        Raises:
            ValueError: there is no such plan for this network, or it does not divide by `num_processes`.
        """
        raise ValueError(
            f"{self.label} has no plan for tensor parallelism: set trainer.strategy.tensor_parallel_size=1, or take"
            " backbone=hf with a model of another family, such as llama"
        )

    def weights_to_save(self) -> set[str]:
        """Return the names of the weights that a checkpoint holds: all, or with adapters those that are trained."""
        if self.saves_frozen:
            return set(self.state_dict())
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    @property
    def causal(self) -> bool:
        """Whether the network attends to the past alone."""
        return self.alignment.causal

    @property
    def shift(self) -> bool:
        """Whether the output at i - 1 predicts token i."""
        return self.alignment.shift

    @property
    def bos_id(self) -> int | None:
        """Id prepended to every sequence when `shift`."""
        return self.alignment.bos_id

    @property
    def predicts_first(self) -> bool:
        """Whether token 0 is predicted (not so for a shifted network without BOS)."""
        return self.alignment.predicts_first

    @property
    def num_params(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def weight_bytes(self, each: int) -> int:
        """Return the bytes of the weights on one process, `each` for a number."""
        return each * self.num_params

    @property
    def divisible(self) -> bool:
        """Whether FSDP2 can split the weights over processes."""
        return True

    def trunk_input(self, inputs: NetworkInput) -> TrunkInput:
        """Return what the trunk reads, its length checked.

        Raises:
            ValueError: the sequence, a clean prefix included, is longer than `max_length`.
        """
        trunk = trunk_input(inputs, self.alignment)
        self.check_length(trunk.length)
        return trunk


def check_memory(num_params: int) -> None:
    """Raise ValueError when the float32 weights of a new network are larger than this machine's memory."""
    if torch.get_default_device().type == "meta" or deferring() is not None:
        return  # no memory is taken
    needed, there = 4 * num_params, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ValueError(
            f"the backbone has about {num_params:,} parameters, {needed / 2**30:,.0f} GiB, and this machine has"
            f" {there / 2**30:,.0f} GiB of memory: lower its width or its number of layers"
        )


def check_token_id(name: str, token_id: int | None, vocab_size: int) -> None:
    """Raise ValueError unless `token_id` is ``None`` or inside the vocabulary."""
    if token_id is not None and not 0 <= token_id < vocab_size:
        raise ValueError(
            f"{name} {token_id} is outside the vocabulary of {vocab_size} tokens (ids 0 to {vocab_size - 1}):"
            " take the id from the tokenizer, or enlarge vocab_size to make room for a new row"
        )
