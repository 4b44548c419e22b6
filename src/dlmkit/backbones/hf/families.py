"""Properties of each family of causal LMs: kernels, windows, and how its logits are transformed.

A family is listed here once the tests (tests/laws/test_backbones.py, tests/backbones/test_families.py) have shown that
it turns bidirectional by `config.is_causal = False`, stays causal otherwise, and masks packed documents.
"""

from __future__ import annotations

from collections.abc import Callable
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
        kernels: attention implementations that apply the mask correctly.
        logit_scale: factor on the model's logits, from its configuration.
        softcap: bound of the model's logits (a tanh), from its configuration, or ``None``.
        window: which layers attend to a window of `config.sliding_window` positions only: "none", "all", or "by_layer"
            as `config.layer_types` says. Bidirectional, a window reaches as far to both sides.
        takes_positions: whether positions must be given, because the model would derive them from its mask.
        activation: the configuration's key of the activation, where it may be "gelu_new": transformers implements that
            one in six operations, and torch's "gelu_pytorch_tanh" is the same function in one.
        problem: why a configuration of the family is refused, with the remedy, or ``None`` where it is supported.
        has_interface: whether its layers call the attention function that transformers' AttentionInterface names.
    """

    kernels: tuple[str, ...] = KERNELS
    logit_scale: Callable[[PretrainedConfig], float] = lambda config: 1.0
    softcap: Callable[[PretrainedConfig], float | None] = lambda config: None
    window: str = "none"
    takes_positions: bool = False
    activation: str | None = None
    problem: Callable[[PretrainedConfig], str | None] = lambda config: None
    has_interface: bool = True


def _softcap(config: PretrainedConfig) -> float | None:
    cap: float | None = config.final_logit_softcapping
    return cap


def _alibi(config: PretrainedConfig) -> str | None:
    if not config.alibi:
        return None
    return (
        "with alibi=true biases its scores by the distance to the left only: take a Falcon with rotary positions"
        " (alibi=false)"
    )


FAMILIES = {
    "falcon": Family(kernels=NOT_FLEX, problem=_alibi, has_interface=False),
    "gemma2": Family(kernels=("eager",), softcap=_softcap, window="by_layer"),  # sdpa has no soft-capping of scores
    "gemma3_text": Family(softcap=_softcap, window="by_layer"),
    "gpt2": Family(kernels=NOT_FLEX, activation="activation_function"),
    "gpt_neox": Family(),
    "granite": Family(logit_scale=lambda config: 1.0 / float(config.logits_scaling)),
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
    """Return the family of `config`.

    Raises:
        ValueError: a model type that is not listed, or a configuration that does not turn bidirectional.
    """
    model_type = config.model_type
    if model_type not in FAMILIES:
        raise ValueError(f"model type {model_type!r} {_reason(config)}: choose one of {', '.join(FAMILIES)}")
    family = FAMILIES[model_type]
    problem = family.problem(config)
    if problem is not None:
        raise ValueError(f"model type {model_type!r} {problem}")
    return family


def _reason(config: PretrainedConfig) -> str:
    if config.is_encoder_decoder:
        return "is an encoder-decoder, not a causal LM"
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "is a masked LM, bidirectional already, and has no next-token head to keep"
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "is not tested to turn bidirectional by config.is_causal without a leak between documents"
    return "is no causal LM of transformers"


def fuse_activation(family: Family, config: PretrainedConfig) -> None:
    """Name the one-operation form of the activation in `config`, where there is one; the function stays."""
    if family.activation is not None and getattr(config, family.activation) == "gelu_new":
        setattr(config, family.activation, "gelu_pytorch_tanh")


def has_windows(family: Family, config: PretrainedConfig) -> bool:
    """Return whether any layer of the model attends to a window."""
    if family.window == "none" or config.sliding_window is None:
        return False
    return family.window == "all" or "sliding_attention" in config.layer_types


def with_windows(mask: Mask, family: Family, config: PretrainedConfig, causal_past: bool) -> Mask | dict[str, Mask]:
    """Return `mask` restricted to the model's windows: one mask for all layers, or one for each kind of layer.

    transformers builds windows itself only where no mask is given.

    Args:
        mask: attention mask.
        family: the model's.
        config: the model's.
        causal_past: whether the window counts the query itself, as in transformers' causal windows (the key is less
            than `sliding_window` positions back); its bidirectional ones reach one further.
    """
    if not has_windows(family, config):
        return mask
    windowed = mask.windowed(config.sliding_window, causal_past)
    if family.window == "all":
        return windowed
    return {"full_attention": mask, "sliding_attention": windowed}


def tensor_parallel_plan(config: PretrainedConfig, num_processes: int) -> dict[str, str]:
    """Return transformers' plan for tensor parallelism: module below the trunk -> "colwise" or "rowwise".

    Raises:
        ValueError: the family has none that consists of these two, or heads or widths that do not divide.
    """
    plan: dict[str, str] = config.base_model_tp_plan or {}
    others = sorted(set(plan.values()) - {"colwise", "rowwise"})
    if not plan or others:
        reason = f"needs {', '.join(others)}" if others else "is not in transformers"
        raise ValueError(
            f"model type {config.model_type!r} has no plan for tensor parallelism here (it {reason}): set"
            " trainer.strategy.tensor_parallel_size=1, which shards all the same, or take a model such as llama"
        )
    for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        number = config.to_dict().get(key)
        if number is not None and number % num_processes:
            raise ValueError(
                f"trainer.strategy.tensor_parallel_size {num_processes} does not divide the model's {key} {number}:"
                " choose a size that does"
            )
    return plan
