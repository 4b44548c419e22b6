"""What is known of each family of causal LMs: kernels, windows, and what it does to its logits.

A family is listed here once the tests (tests/laws/test_backbones.py, tests/backbones/test_families.py) have seen it
turn bidirectional by `config.is_causal = False`, stay causal otherwise, and keep packed documents apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from dlmkit.backbones.attention import FLEX, Mask

KERNELS = ("sdpa", "eager", FLEX, "flash_attention_2")
NOT_FLEX = ("sdpa", "eager", "flash_attention_2")


@dataclass(frozen=True)
class Family:
    """One transformers model type.

    Attributes:
        kernels: attention implementations that obey.
        divides_logits: whether the model divides its logits by `config.logits_scaling`.
        caps_logits: whether `config.final_logit_softcapping` bounds its logits.
        window: which layers see a window of `config.sliding_window` positions only: "none", "all", or "by_layer" as
            `config.layer_types` says. Bidirectional, a window reaches as far to both sides.
        takes_positions: whether positions must be given, because the model would derive them from its mask.
        activation: the configuration's key of the activation, where it may be "gelu_new": transformers spells that one
            out in six operations, and torch's "gelu_pytorch_tanh" is the same function in one.
    """

    kernels: tuple[str, ...] = KERNELS
    divides_logits: bool = False
    caps_logits: bool = False
    window: str = "none"
    takes_positions: bool = False
    activation: str | None = None


FAMILIES = {
    "falcon": Family(kernels=NOT_FLEX),
    "gemma2": Family(kernels=("eager",), caps_logits=True, window="by_layer"),  # sdpa has no soft-capping of scores
    "gemma3_text": Family(caps_logits=True, window="by_layer"),
    "gpt2": Family(kernels=NOT_FLEX, activation="activation_function"),
    "gpt_neox": Family(),
    "granite": Family(divides_logits=True),
    "llama": Family(),
    "mistral": Family(window="all"),
    "olmo": Family(),
    "olmo2": Family(),
    "opt": Family(takes_positions=True),
    "phi": Family(activation="hidden_act"),
    "phi3": Family(window="all"),
    "qwen2": Family(window="by_layer"),
    "qwen3": Family(window="by_layer"),
    "smollm3": Family(window="by_layer"),
    "starcoder2": Family(window="all"),
}


def family_of(config: PretrainedConfig) -> Family:
    """Return what is known of the model type of `config`.

    Raises:
        ValueError: nothing is, or the model is known not to be a causal LM that turns bidirectional.
    """
    model_type = config.model_type
    if model_type in FAMILIES:
        if model_type == "falcon" and config.alibi:
            raise ValueError(
                "model type 'falcon' with alibi=true biases its scores by a distance to the left only: take a Falcon"
                " with rotary positions (alibi=false)"
            )
        return FAMILIES[model_type]
    raise ValueError(f"model type {model_type!r} {_reason(config)}: choose one of {', '.join(FAMILIES)}")


def _reason(config: PretrainedConfig) -> str:
    if config.is_encoder_decoder:
        return "is an encoder-decoder, not a causal LM"
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "is a masked LM, bidirectional already, and has no next-token head to keep"
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "has not been seen to turn bidirectional by config.is_causal without a leak between documents"
    return "is no causal LM of transformers"


def fuse_activation(family: Family, config: PretrainedConfig) -> None:
    """Name the one-operation form of the activation in `config`, where there is one; the function stays."""
    if family.activation is not None and getattr(config, family.activation) == "gelu_new":
        setattr(config, family.activation, "gelu_pytorch_tanh")


def logit_scale(family: Family, config: PretrainedConfig) -> float:
    """Return the factor that the model puts on its logits."""
    return 1.0 / float(config.logits_scaling) if family.divides_logits else 1.0


def softcap(family: Family, config: PretrainedConfig) -> float | None:
    """Return the bound of the model's logits, or ``None``."""
    cap: float | None = config.final_logit_softcapping if family.caps_logits else None
    return cap


def with_windows(mask: Mask, family: Family, config: PretrainedConfig, causal_past: bool) -> Mask | dict[str, Mask]:
    """Return `mask` as the model wants it, cut to its windows: one for all layers, or by kind.

    transformers builds windows itself only where no mask is given.

    Args:
        mask: who sees whom.
        family: the model's.
        config: the model's.
        causal_past: whether the window counts the query itself, as in transformers' causal windows (the key is less
            than `sliding_window` positions back); its bidirectional ones reach one further.
    """
    if family.window == "none" or config.sliding_window is None:
        return mask
    windowed = mask.windowed(config.sliding_window, causal_past)
    if family.window == "all":
        return windowed
    if "sliding_attention" not in config.layer_types:
        return mask
    return {"full_attention": mask, "sliding_attention": windowed}
