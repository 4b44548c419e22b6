"""The kit's own network: a transformer whose layers are modulated by the time t (t = 0 is data, t = 1 is noise).

Shapes: B sequences, L positions, M input positions (L, or L + 1 with a prepended BOS), H heads, V vocabulary, D hidden
size, E size of the time embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dlmkit.backbones.attention import FLEX, flex, sdpa
from dlmkit.backbones.base import check_memory
from dlmkit.backbones.caching import CachingBackbone, States
from dlmkit.backbones.head import Head, HeadPrediction
from dlmkit.backbones.inputs import TrunkInput
from dlmkit.backbones.kv_cache import Memory
from dlmkit.backbones.rotary import FREQUENCY_BASE, Rotary, rotary_angles, rotate
from dlmkit.ranges import Dropout, Range, Tokens, checked
from dlmkit.types import NetworkInput

INIT_STD = 0.02
TIME_SCALE = 1_000.0
"""t in [0, 1] is embedded as TIME_SCALE * t: the sinusoids were made for positions, and span 0 to 1,000 well."""
TIME_FEATURES = 256

KERNELS = ("sdpa", FLEX)
"""What `attention` may be: torch's scaled_dot_product_attention, or its flex_attention, compiled."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of query, key and value, each [B, H, M, D / H]; the result has their shape."""


class DiT(CachingBackbone):
    """Pre-norm transformer with adaptive layer norm, rotary positions and no position embedding.

    Each layer computes, with (shift, scale, gate) twice from the time embedding c(t),

        x = x + gate_1 * attention((1 + scale_1) * LN(x) + shift_1)
        x = x + gate_2 * mlp((1 + scale_2) * LN(x) + shift_2)

    and the final layer norm is modulated likewise. All modulation starts at zero, so every layer starts as the identity
    (adaLN-Zero, arXiv 2212.09748, section 3.2; for masked diffusion language models arXiv 2406.07524).

    With ``time_conditioned: false`` the six vectors of a layer are plain parameters (conditioning on a constant) and t
    is ignored: enough for absorbing noise, whose t can be read off x_t, and right for the autoregressive baseline.

    The clean blocks of block diffusion are cached as of t = 0, and a prefix where a causal network does not read t (one
    that does reads it at the prefix too). Positions are not reset at document boundaries: rotary attention depends on
    differences of positions only, and `segments` masks other documents.

    Args:
        vocab_size: V, mask token included.
        mask_id: id of the mask token, or ``None`` where the process has none.
        max_length: longest sequence L that is accepted. No weight depends on it.
        hidden_size: D.
        num_layers: number of layers.
        num_heads: H; D / H must be even.
        cond_size: E (unused without time conditioning).
        mlp_ratio: width of the MLP over D.
        dropout: on attention weights and on both branches of a layer, while training.
        causal: attend to the past alone (the autoregressive baseline).
        shift: the output at i - 1 predicts token i, see :class:`dlmkit.backbones.alignment.Alignment`.
        bos_id: id prepended to every sequence when ``shift``.
        time_conditioned: modulate by t.
        tied: use the token embedding as output head; an untied head starts at zero (a uniform prediction).
        attention: kernel: "sdpa", or "flex_attention", which skips masked tiles of 128 by 128, most of a pass of block
            diffusion; torch has no backward pass of it on a CPU and no dropout in it.
        gradient_checkpointing: recompute activations in the backward pass, layer by layer.

    Raises:
        ValueError: sizes that do not fit the heads, an unknown kernel, flex attention with dropout.
    """

    name = "dit"
    supports_context = True

    @checked
    def __init__(
        self,
        vocab_size: int,
        mask_id: int | None,
        max_length: Tokens,
        hidden_size: Annotated[int, Range("[2, 65536]", "give a multiple of 2 x num_heads, such as 128")],
        num_layers: Annotated[int, Range("[1, 1024]", "give the number of layers, such as 4")],
        num_heads: Annotated[int, Range("[1, 1024]", "give the number of heads, such as 4")],
        cond_size: Annotated[int, Range("[2, 65536]", "give the width of the time embedding, such as 64")],
        mlp_ratio: Annotated[int, Range("[1, 64]", "it is the width of the MLP over hidden_size, such as 4")] = 4,
        dropout: Dropout = 0.0,
        causal: bool = False,
        shift: bool = False,
        bos_id: int | None = None,
        time_conditioned: bool = True,
        tied: bool = False,
        attention: str = "sdpa",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(vocab_size, mask_id, causal, shift, bos_id)
        self.supports_cache = not (causal and time_conditioned)
        if hidden_size % (2 * num_heads) != 0:
            raise ValueError(
                f"hidden_size {hidden_size} with {num_heads} heads: rotary positions need an even number of dimensions"
                f" per head; choose a hidden_size that is a multiple of {2 * num_heads}"
            )
        _check_kernel(attention, dropout)
        check_memory(num_layers * (4 + 2 * mlp_ratio) * hidden_size**2 + vocab_size * hidden_size)
        self.attention = attention
        self.gradient_checkpointing = gradient_checkpointing
        self.dropout = dropout
        self._max_length = max_length
        self.head_size = hidden_size // num_heads
        self.embedding = _Embedding(vocab_size, hidden_size)
        self.time = TimeEmbedding(cond_size) if time_conditioned else None
        modulation_input = cond_size if time_conditioned else None
        self.blocks = nn.ModuleList(
            Layer(hidden_size, num_heads, modulation_input, mlp_ratio, dropout) for _ in range(num_layers)
        )
        self.final = Modulation(modulation_input, hidden_size, num_vectors=2)
        self.unembedding = None if tied else _ZeroLinear(hidden_size, vocab_size, bias=False)

    @property
    def max_length(self) -> int:
        """The `max_length` of the constructor; rotary positions have no table that limits it."""
        return self._max_length

    def forward(self, inputs: NetworkInput) -> HeadPrediction:
        """Return the prediction at the positions of `inputs.x_t`, see :class:`Backbone`.

        Raises:
            ValueError: L exceeds ``max_length``, or flex attention is to be trained on a CPU.
        """
        return HeadPrediction(self.states(inputs), self.head, self.mask_id)

    def run_trunk(self, trunk: TrunkInput, keep: bool = False) -> States:
        """Return the normalised states after the last layer. See :class:`CachingBackbone`."""
        kernel = self._kernel(trunk)
        memory = Memory(() if trunk.past is None else trunk.past.layers)
        cos, sin = rotary_angles(trunk.length + 1, self.head_size, trunk.ids.device)  # one more for a BOS
        at = trunk.positions if trunk.positions.ndim == 1 else trunk.positions[:, None]  # the same for all heads
        rotary = cos[at], sin[at]
        cond = None if self.time is None else self.time(trunk.t)
        x = self.embedding(trunk.ids)
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        remembers = keep or trunk.past is not None  # otherwise all layers are alike, for the compiler too
        for index, block in enumerate(self.blocks):
            attend = partial(_attend_to_all, kernel, memory, index) if remembers else kernel
            inputs_of_block = (x, cond, rotary, attend)
            x = checkpoint(block, *inputs_of_block, use_reentrant=False) if recompute else block(*inputs_of_block)
        shift, scale = self.final(cond)
        return States(adaptive_norm(x, shift, scale), memory.layers if keep else ())

    def _kernel(self, trunk: TrunkInput) -> Attend:
        """Return this pass's attention, for all layers."""
        mask = trunk.mask
        if self.attention == FLEX:
            return partial(flex, mask=mask or trunk.whole_mask())
        dropout = self.dropout if self.training else 0.0
        return partial(sdpa, mask=mask, dropout=dropout, causal=trunk.causal)

    @property
    def head(self) -> Head:
        """The output head."""
        return Head((self.unembedding or self.embedding).weight)

    def sharding_units(self) -> list[nn.Module]:
        """Return the layers."""
        return list(self.blocks)

    def flops_per_token(self, length: int, head_fraction: float) -> float:
        """Return forward + backward floating-point operations per token of a sequence of `length`.

        6 per weight that multiplies the token, and 12 L D per layer for attention (half of it when causal), as in arXiv
        2204.02311, appendix B, with the head counted where it runs. The modulation, computed once per sequence, is
        left out.

        Args:
            length: L.
            head_fraction: share of the positions at which the objective runs the head, in [0, 1].
        """
        hidden_size = self.embedding.embedding_dim
        weights = sum(block.num_matmul_weights for block in self.blocks)  # type: ignore[misc]
        head = head_fraction * self.vocab_size * hidden_size
        attention = 12.0 * len(self.blocks) * length * hidden_size * (0.5 if self.causal else 1.0)
        return 6.0 * (weights + head) + attention


class Layer(nn.Module):
    """Attention and MLP on the residual stream, each behind an adaptive layer norm and a gate.

    Args:
        hidden_size: D.
        num_heads: H.
        cond_size: E, or ``None`` for learned constants.
        mlp_ratio: width of the MLP over D.
        dropout: probability, while training.
    """

    def __init__(self, hidden_size: int, num_heads: int, cond_size: int | None, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.modulation = Modulation(cond_size, hidden_size, num_vectors=6)
        self.qkv = _Linear(hidden_size, 3 * hidden_size, bias=False)
        self.out = _Linear(hidden_size, hidden_size, bias=False)
        self.up = _Linear(hidden_size, mlp_ratio * hidden_size)
        self.down = _Linear(mlp_ratio * hidden_size, hidden_size)

    def forward(self, x: Tensor, cond: Tensor | None, rotary: Rotary, attend: Attend) -> Tensor:
        """Return the residual stream [B, M, D] after this layer.

        Args:
            x: [B, M, D].
            cond: time embedding [B, E] or [B, M, E], or ``None`` without time conditioning.
            rotary: see :func:`rotary_angles`.
            attend: the kernel, with its mask.
        """
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(cond)
        attended = self.attention(adaptive_norm(x, shift_1, scale_1), rotary, attend)
        x = x + gate_1 * F.dropout(attended, self.dropout, self.training)
        widened = F.gelu(self.up(adaptive_norm(x, shift_2, scale_2)), approximate="tanh")
        return x + gate_2 * F.dropout(self.down(widened), self.dropout, self.training)

    def attention(self, x: Tensor, rotary: Rotary, attend: Attend) -> Tensor:
        """Return multi-head attention of x [B, M, D] with itself, [B, M, D]."""
        heads = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # [B, M, 3, H, D/H]
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each [B, H, M, D/H]
        mixed = attend(rotate(query, rotary), rotate(key, rotary), value)
        return self.out(mixed.transpose(1, 2).flatten(2))

    @property
    def num_matmul_weights(self) -> int:
        """Number of weights that multiply every token."""
        return sum(layer.weight.numel() for layer in (self.qkv, self.out, self.up, self.down))


class Modulation(nn.Module):
    """Vectors of size D, zero at first: a linear map of the time embedding, or learned constants."""

    def __init__(self, cond_size: int | None, hidden_size: int, num_vectors: int) -> None:
        super().__init__()
        self.num_vectors = num_vectors
        self.linear = None if cond_size is None else _ZeroLinear(cond_size, num_vectors * hidden_size)
        self.constant = nn.Parameter(torch.empty(1, num_vectors * hidden_size)) if cond_size is None else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the constants to zero."""
        if self.constant is not None:
            nn.init.zeros_(self.constant)

    def forward(self, cond: Tensor | None) -> tuple[Tensor, ...]:
        """Return `num_vectors` tensors: [B, 1, D] from cond [B, E], [B, M, D] from [B, M, E], or constant [1, 1, D]."""
        vectors = self.constant if self.linear is None else self.linear(cond)
        assert vectors is not None
        return (vectors if vectors.ndim == 3 else vectors[:, None]).chunk(self.num_vectors, dim=-1)


class TimeEmbedding(nn.Module):
    """Sinusoids of 1000 t with periods from 2 pi to 20,000 pi, then a two-layer MLP to E values."""

    def __init__(self, cond_size: int) -> None:
        super().__init__()
        self.up = _Linear(TIME_FEATURES, cond_size)
        self.down = _Linear(cond_size, cond_size)

    def forward(self, t: Tensor) -> Tensor:
        """Return the embedding, t's shape + [E], of t (float64, in [0, 1])."""
        half = TIME_FEATURES // 2
        exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
        angles = (TIME_SCALE * t).float()[..., None] * torch.exp(-math.log(FREQUENCY_BASE) * exponents)
        features = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.up.weight.dtype)
        return F.silu(self.down(F.silu(self.up(features))))


def adaptive_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return (1 + scale) * LN(x) + shift for x [B, M, D], vectors [B or 1, M or 1, D]; LN has no weights."""
    return (1 + scale) * F.layer_norm(x, x.shape[-1:]) + shift


def _attend_to_all(kernel: Attend, memory: Memory, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend to the keys [B, H, M, D / H] of this pass and to what the memory has of the layer."""
    extended = memory.extend(layer, key, value)
    return kernel(query, extended.keys, extended.values)


def _check_kernel(attention: str, dropout: float) -> None:
    if attention not in KERNELS:
        raise ValueError(
            f"backbone.attention {attention!r} is not supported by this network: choose {' or '.join(KERNELS)}"
        )
    if attention == FLEX and dropout > 0.0:
        raise ValueError(
            f"backbone.dropout {dropout} with backbone.attention=flex_attention, which drops no attention weights:"
            " set backbone.dropout=0 or backbone.attention=sdpa"
        )


class _Linear(nn.Linear):
    """Weights from N(0, 0.02^2), bias zero.

    In ``reset_parameters``, which Lightning calls, so that a model built on the meta device is initialised alike.
    """

    std = INIT_STD

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class _ZeroLinear(_Linear):
    std = 0.0


class _Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=INIT_STD)
