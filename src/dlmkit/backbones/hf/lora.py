"""Low-rank adapters on a transformers model, through peft."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dlmkit.backbones.hf.four_bit import FourBitLinear
from dlmkit.extras import extra
from dlmkit.ranges import Dropout, LoraAlpha, LoraRank, check, parameters_of

LATER = {"quantize"}
"""Settings that runs of earlier versions do not have."""


def check_lora(lora: Mapping[str, Any]) -> None:
    """Raise ValueError unless `lora` holds the settings of `add_lora`, each in its range, or rank 0 alone."""
    hints = {name: hint for name, hint in parameters_of(add_lora).items() if name != "model"}
    if set(hints) - LATER != set(lora) - LATER and dict(lora) != {"rank": 0}:
        raise ValueError(f"backbone.lora has {', '.join(map(str, lora)) or 'nothing'}: give {', '.join(hints)}")
    for name, value in lora.items():
        check(f"backbone.lora.{name}", value, hints[name])


def add_lora(
    model: PreTrainedModel,
    rank: LoraRank,
    alpha: LoraAlpha,
    dropout: Dropout,
    train_embeddings: bool,
    quantize: Literal["4bit"] | None = None,
) -> Any:
    """Freeze `model` but for adapters on all its linear layers (not the head), in place; return peft's handle on it.

    Source: arXiv 2106.09685; arXiv 2410.17891, appendix B.4 (rank 8 on all linear layers, embeddings trained fully).

    Args:
        model: changed in place; its classes and its forward stay.
        rank: of the adapters, at least 1.
        alpha: the update is scaled by alpha / rank.
        dropout: on the adapters' input, in [0, 1).
        train_embeddings: also train the token embeddings, fully: a new mask token has to be learned.
        quantize: "4bit": the layers that have adapters keep their own weights in 4 bits (arXiv 2305.14314), but for
            those whose number of weights is no multiple of 64.

    Raises:
        ValueError: peft, or for 4 bits torchao, is not installed.
    """
    peft = extra("peft", "lora", "backbone.lora")
    transposed = any(isinstance(module, Conv1D) for module in model.modules())  # GPT-2's layers are [in, out]
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear", fan_in_fan_out=transposed
    )
    tuner = peft.LoraModel(model, config, "default")
    if train_embeddings:
        embeddings = model.get_input_embeddings()
        assert isinstance(embeddings, nn.Module)
        embeddings.requires_grad_(True)
    if quantize is not None:
        for module in list(model.modules()):
            if isinstance(module, peft.tuners.lora.LoraLayer) and FourBitLinear.fits(module.base_layer):
                module.base_layer = FourBitLinear(module.base_layer)
    return tuner


def merge_lora(tuner: Any) -> PreTrainedModel:
    """Add the adapters to the weights and take them away, in place; return the plain model.

    Weights in 4 bits become the float32 numbers that they stand for, on which the adapters were trained.
    """
    for module in list(tuner.model.modules()):
        inner = module._modules.get("base_layer")
        if isinstance(inner, FourBitLinear):
            module.base_layer = inner.restored()
    model: PreTrainedModel = tuner.merge_and_unload(safe_merge=True)
    return model
