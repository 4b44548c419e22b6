"""Frozen linear layers whose weights take 4 bits a number, for adapters to be trained on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dlmkit.extras import extra

BLOCK = 64
"""Weights that share a scale."""

SCALES = 256
"""Scales, of 8 bits each, that share a factor; fewer where a layer has another number of blocks."""


@dataclass(frozen=True, eq=False)
class _Packed:
    """A weight in 4 bits, torchao's NF4Tensor, which is never changed: copies of a network share it."""

    tensor: Any

    def __deepcopy__(self, memo: Any) -> _Packed:
        return self


class FourBitLinear(nn.Module):
    """A linear layer, or a GPT-2 one, that computes with its weight rounded to 4 bits (NF4).

    Source: arXiv 2305.14314, section 3 (NormalFloat in blocks of 64, scales in 8 bits), as torchao has it. The weight
    is made whole for a product, in the product's type, and again in the backward pass. It gets no gradient.

    Args:
        layer: taken over, its weight thrown away; a bias stays as it is. On the meta device only sizes are known.

    Raises:
        ValueError: torchao is not installed.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        to_nf4 = extra("torchao.quantization", "quantized", "backbone.lora.quantize=4bit").to_nf4
        weight = layer.weight
        assert isinstance(weight, Tensor)
        weight = weight.detach().t() if isinstance(layer, Conv1D) else weight.detach()  # GPT-2's layers are [in, out]
        self.shape = tuple(weight.shape)
        blocks = math.gcd(self.num_weights // BLOCK, SCALES)
        self._packed = None if weight.is_meta else _Packed(to_nf4(weight.contiguous(), BLOCK, blocks))
        layer.register_parameter("weight", None)
        self.layer = layer

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        """Whether the weight of a layer can be cut into blocks."""
        weight = layer.weight
        return isinstance(weight, Tensor) and weight.numel() % BLOCK == 0

    @property
    def num_weights(self) -> int:
        """Numbers in the weight."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of the weight in 4 bits: codes, scales and their factors, a mean and the table of 16 values."""
        blocks = self.num_weights // BLOCK
        return self.num_weights // 2 + blocks + 4 * (blocks // math.gcd(blocks, SCALES)) + 4 * 17

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the layer's output; inputs [..., in], in autocast's type where that is on."""
        kind = inputs.device.type
        if torch.is_autocast_enabled(kind):
            inputs = inputs.to(torch.get_autocast_dtype(kind))
        outputs: Tensor = _Product.apply(inputs, self)
        bias = self.layer.bias
        return outputs + bias.to(outputs.dtype) if isinstance(bias, Tensor) else outputs

    def unpacked(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return the weight [out, in] as numbers; without values where the layer was made without."""
        if self._packed is None:
            return torch.empty(self.shape, dtype=dtype, device=device)
        weight: Tensor = self._packed.tensor.to(dtype)
        return weight

    def restored(self) -> nn.Module:
        """Return the plain layer, with the numbers that the 4 bits stand for; this one is used up by it."""
        weight = self.unpacked(torch.float32, torch.device("cpu"))
        weight = weight.t().contiguous() if isinstance(self.layer, Conv1D) else weight
        self.layer.weight = nn.Parameter(weight, requires_grad=False)
        return self.layer

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FourBitLinear:
        """Move to another device; the 4 bits have no other type."""
        super()._apply(fn, recurse)
        if self._packed is not None:
            packed = self._packed.tensor
            device = fn(torch.empty(0, device=packed.device)).device
            if device != packed.device:
                self._packed = _Packed(packed.to(device))
        return self


class _Product(torch.autograd.Function):
    """inputs times a weight in 4 bits, which alone is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: FourBitLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(inputs, layer.unpacked(inputs.dtype, inputs.device))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.unpacked(gradient.dtype, gradient.device), None
