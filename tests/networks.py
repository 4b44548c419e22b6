"""Tiny networks for tests: one of every family of causal LMs, and the kit's own transformer.

Shapes: B sequences, L positions, V vocabulary, D hidden size.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlmkit.backbones.base import Backbone
from dlmkit.backbones.dit import DiT
from dlmkit.backbones.hf import HFBackbone
from dlmkit.backbones.hf.families import FAMILIES
from dlmkit.types import FULL_ATTENTION, Attention, NetworkInput

V, MASK, BOS, L = 13, 5, 2, 9

LLAMA = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "hidden_size": 16,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}
NEOX = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
WINDOW = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}

SIZES = {
    "falcon": {**{k: v for k, v in NEOX.items() if k != "intermediate_size"}, "alibi": False, "num_kv_heads": 1},
    "gemma2": {**LLAMA, **WINDOW, "head_dim": 8, "final_logit_softcapping": 2.0},
    "gemma3_text": {**LLAMA, **WINDOW, "head_dim": 8, "final_logit_softcapping": 2.0},
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 16},
    "gpt_neox": NEOX,
    "granite": {**LLAMA, "logits_scaling": 3.0, "residual_multiplier": 0.7, "embedding_multiplier": 2.0},
    "llama": LLAMA,
    "mistral": {**LLAMA, "sliding_window": 5},
    "olmo": LLAMA,
    "olmo2": LLAMA,
    "opt": {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 16,
        "word_embed_proj_dim": 8,
        "ffn_dim": 24,
        "max_position_embeddings": 16,
        "dropout": 0.0,
    },
    "phi": LLAMA,
    "phi3": {**LLAMA, "sliding_window": 5},
    "qwen2": {**LLAMA, **WINDOW, "use_sliding_window": True},
    "qwen3": {**LLAMA, **WINDOW, "use_sliding_window": True, "head_dim": 8},
    "smollm3": {**LLAMA, **WINDOW, "use_sliding_window": True, "no_rope_layers": [1, 0]},
    "starcoder2": {**LLAMA, "sliding_window": 5},
}
"""A toy configuration for every model type of dlmkit.backbones.hf.families; windows are shorter than the sequence."""

WITH_COMPILER = pytest.mark.compiled

KERNELS_OF = {
    family: [kernel for kernel in ("eager", "sdpa", "flex_attention") if kernel in known.kernels]
    for family, known in FAMILIES.items()
}

HF = [
    pytest.param(
        family,
        attention,
        id=f"{family}-{attention}",
        marks=[WITH_COMPILER] if attention == "flex_attention" else [],
    )
    for family, kernels in KERNELS_OF.items()
    for attention in kernels
]
DIFFERENTIABLE = [one for one in HF if "flex_attention" not in one.values]  # on a CPU flex attention has no backward
NETWORKS = [
    *HF,
    pytest.param("dit", "sdpa", id="dit"),
    pytest.param("dit", "flex_attention", id="dit-flex_attention", marks=[WITH_COMPILER]),
]
EITHER_BOS = pytest.mark.parametrize("bos", ["prepend", "none"])
EITHER_WAY = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


def network(
    family: str, attention: str = "sdpa", causal: bool = False, bos: str = "prepend", mask_id: int | None = MASK
) -> Backbone:
    """A tiny shifted network whose every weight matters, the same for equal family whatever the rest."""
    torch.manual_seed(0)
    backbone: Backbone
    if family == "dit":
        bos_id = BOS if bos == "prepend" else None
        backbone = DiT(V, mask_id, 16, 16, 2, 2, 8, causal=causal, shift=True, bos_id=bos_id, attention=attention)
    else:
        backbone = hf_network(family, attention=attention, causal=causal, bos=bos, mask_id=mask_id)
    torch.manual_seed(1)
    return randomised(backbone)


def hf_network(family: str, **changes: object) -> HFBackbone:
    """A transformers model of that family with its initial weights; `changes` are constructor keywords."""
    keywords = {
        "vocab_size": V,
        "mask_id": MASK,
        "bos_id": BOS,
        "causal": False,
        "shift": True,
        "bos": "prepend",
        "attention": "sdpa",
        "attention_with_mask": None,
        "gradient_checkpointing": False,
        "lora": {"rank": 0},
        "name": None,
        "config": {"model_type": family, **SIZES[family]},
    }
    return HFBackbone(**{**keywords, **changes})  # type: ignore[arg-type]


def randomised(backbone: Backbone) -> Backbone:
    """The network in eval mode with noise on every weight, so that none is zero."""
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return backbone.eval()


def some_tokens(*shape: int, seed: int = 0) -> Tensor:
    """Random ids of the vocabulary, int64 `shape`."""
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def at_half(x_t: Tensor) -> Tensor:
    """t = 0.5 for each sequence, float64 [B]."""
    return torch.full((len(x_t),), 0.5, dtype=torch.float64)


@torch.no_grad()
def hidden(
    backbone: Backbone, x_t: Tensor, segments: Tensor | None = None, attention: Attention = FULL_ATTENTION
) -> Tensor:
    """Input of the head, [B, L, D]; equal hidden states are equal predictions."""
    return backbone(NetworkInput(x_t, at_half(x_t), segments, attention=attention)).hidden


def differ(a: Tensor, b: Tensor) -> Tensor:
    """Positions at which two predictions [1, L, D] differ in any bit, bool [L]."""
    return (a != b).any(-1)[0]


def everywhere(x: Tensor) -> Tensor:
    """All positions, bool [B, L]."""
    return torch.ones_like(x, dtype=torch.bool)
