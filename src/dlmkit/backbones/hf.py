"""Any transformers causal LM as a backbone; every Hugging Face quirk lives here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from dlmkit.backbones.attention import FLEX, Mask, check_flex_trains, plain_mask
from dlmkit.backbones.base import Backbone, Reading
from dlmkit.backbones.families import (
    FAMILIES,
    KERNELS,
    family_of,
    fuse_activation,
    logit_scale,
    softcap,
    with_windows,
)
from dlmkit.backbones.lora import add_lora, merge_lora
from dlmkit.backbones.prediction import Head, Prediction
from dlmkit.types import Context

NEW_ROWS = 1
"""Rows that may be added to a pretrained embedding: the mask token's."""


class HFBackbone(Backbone):
    """A causal LM turned bidirectional by `config.is_causal = False`, without patches or subclasses.

    Source: arXiv 2410.17891, section 3.2: full attention, the shift kept, no time embedding (t is not read).

    Args:
        vocab_size: V, mask token included; the embedding grows to it if it has fewer rows; padding rows beyond
            it are kept but never predicted.
        mask_id: id of the mask token, or ``None``.
        bos_id: id to prepend to every block when `shift` and `bos` is "prepend".
        causal: hide the future (autoregressive baseline).
        shift: the output at i - 1 speaks about token i, as in the causal LM.
        bos: "prepend" or "none" (the paper's behaviour: token 0 is context and is not scored).
        attention: kernel: "sdpa", "eager", "flex_attention" or "flash_attention_2".
        attention_with_mask: kernel of steps that need a mask (annealing, documents kept apart), which flash attention
            does not take; ``None`` for `attention`, or "sdpa" where that is "flash_attention_2".
        gradient_checkpointing: recompute activations in the backward pass, layer by layer.
        lora: rank, alpha, dropout and train_embeddings of low-rank adapters, which are then all that is trained; rank 0
            for none.
        name: hub name or local folder of a pretrained model; ``None`` builds `config` from scratch.
        config: keywords of the model's configuration, `model_type` among them, when `name` is ``None``.

    Raises:
        ValueError: a family that is not known to obey, a name that cannot be found, weights that are damaged or do not
            fit, a kernel that the family does not support.
    """

    def __init__(
        self,
        vocab_size: int,
        mask_id: int | None,
        bos_id: int | None,
        causal: bool,
        shift: bool,
        bos: str,
        attention: str,
        attention_with_mask: str | None,
        gradient_checkpointing: bool,
        lora: dict[str, Any],
        name: str | None,
        config: dict[str, Any] | None,
    ) -> None:
        super().__init__(vocab_size, mask_id, causal, shift, _bos_to_prepend(bos, bos_id, shift))
        model_config = _model_config(name, config, vocab_size)
        self.family = family_of(model_config)
        self.attention = attention
        self.attention_with_mask = attention_with_mask or ("sdpa" if attention == "flash_attention_2" else attention)
        _check_kernels(self.attention, self.attention_with_mask, model_config.model_type)
        fuse_activation(self.family, model_config)
        model_config.is_causal = causal
        self.model: PreTrainedModel = _build(name, model_config, attention)
        _resize(self.model, vocab_size, name)
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # In a tuple, so that torch does not register the model a second time.
        self._tuner = (add_lora(self.model, **lora),) if lora["rank"] else ()
        self.saves_frozen = name is None or not self._tuner

    def forward(
        self, x_t: Tensor, t: Tensor, segments: Tensor | None = None, context: Context | None = None
    ) -> Prediction:
        """Return the prediction for x_t (int64 [B, L]); t is not read. For `context` see :class:`Backbone`."""
        self.check_length(x_t.shape[1])
        reading = self.reading(x_t, t, segments, context)
        self._use_kernel(self.attention if reading.mask is None else self.attention_with_mask, x_t.device)
        positions = {}
        if self.family.takes_positions or reading.outputs is not None:
            positions["position_ids"] = reading.positions.expand(reading.ids.shape)
        # The kit runs the trunk and the head apart, so that the head runs only where somebody asks.
        outputs = self.model.base_model(
            input_ids=reading.ids, attention_mask=self._kernel_mask(reading), use_cache=False, **positions
        )
        hidden = self.aligned(outputs.last_hidden_state, reading, x_t.shape[1])
        return Prediction(hidden, self.head, self.mask_id)

    @property
    def head(self) -> Head:
        """The output head, with what the family does to its logits."""
        output = self.model.get_output_embeddings()
        assert isinstance(output, nn.Linear)
        # Rows beyond the tokenizer's ids are padding that some models carry; they are never predicted.
        bias = None if output.bias is None else output.bias[: self.vocab_size]
        config = self.model.config
        return Head(
            output.weight[: self.vocab_size], bias, logit_scale(self.family, config), softcap(self.family, config)
        )

    def to_hugging_face(self) -> PreTrainedModel:
        """Return the model for `save_pretrained`, adapters merged; the backbone is used up by it."""
        return merge_lora(self._tuner[0]) if self._tuner else self.model

    def sharding_units(self) -> list[nn.Module]:
        """Return the transformer layers, the units of sharding."""
        kinds = set(self.model._no_split_modules or ())
        return [module for module in self.model.modules() if type(module).__name__ in kinds]

    @property
    def max_length(self) -> int:
        """The model's positions, less the one that a prepended BOS takes."""
        return int(self.model.config.max_position_embeddings) - self.extra_positions

    def flops_per_token(self, length: int, head_fraction: float) -> float:
        """6 per trunk and used head parameter, and 12 L D per layer for attention (half of it when causal).

        Source: arXiv 2204.02311 (PaLM), appendix B, with the head counted where it runs.
        """
        config = self.model.config
        head = self.model.get_output_embeddings().weight.numel()
        embeddings = {id(module.weight): module.weight.numel() for module in _embeddings(self.model)}
        trunk = self.num_params - sum(embeddings.values())
        attention = 12 * config.num_hidden_layers * config.hidden_size * length * (0.5 if self.causal else 1.0)
        return 6.0 * (trunk + head * head_fraction) + attention

    def _use_kernel(self, name: str, device: torch.device) -> None:
        if name == FLEX and torch.is_grad_enabled():
            check_flex_trains(any(parameter.requires_grad for parameter in self.parameters()), device)
        if self.model.config._attn_implementation != name:
            self.model.set_attn_implementation(name)

    def _kernel_mask(self, reading: Reading) -> Any:
        """Return the mask as this step's kernel wants it; a dictionary of them where layers differ."""
        mask = reading.mask
        if mask is None and self.model.config._attn_implementation == FLEX:
            # Left to itself, transformers would make (and compile) its flex mask anew in every pass.
            mask = plain_mask(reading.ids.shape[1], self.causal, reading.ids.device)
        if mask is None:
            return None
        causal_past = self.causal or self.attention_ratio < 1.0
        masks = with_windows(mask, self.family, self.model.config, causal_past)
        if isinstance(masks, dict):
            return {kind: self._for_kernel(one) for kind, one in masks.items()}
        return self._for_kernel(masks)

    def _for_kernel(self, mask: Mask) -> Any:
        implementation = self.model.config._attn_implementation
        if implementation == FLEX:
            return mask.flex
        seen = mask.visible
        if implementation == "sdpa":
            return seen
        # Eager attention adds its mask to the scores.
        dtype = self.model.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def _check_kernels(attention: str, attention_with_mask: str, model_type: str) -> None:
    kernels = FAMILIES[model_type].kernels
    for key, kernel in (("attention", attention), ("attention_with_mask", attention_with_mask)):
        if kernel not in KERNELS:
            raise ValueError(f"backbone.{key} {kernel!r} is unknown: choose one of {', '.join(KERNELS)}")
        if kernel not in kernels:
            raise ValueError(
                f"backbone.{key} {kernel!r} does not work for model type {model_type!r}: choose one of"
                f" {', '.join(kernels)}"
            )
    if attention_with_mask == "flash_attention_2":
        raise ValueError(
            "backbone.attention_with_mask flash_attention_2 takes no dense mask, which annealing and documents kept"
            " apart need: set it to sdpa or flex_attention"
        )


def _bos_to_prepend(bos: str, bos_id: int | None, shift: bool) -> int | None:
    if bos not in ("prepend", "none"):
        raise ValueError(f"backbone.bos {bos!r} is unknown: choose prepend or none")
    if bos == "none" or not shift:
        return None
    if bos_id is None:
        raise ValueError(
            "backbone.bos=prepend needs a BOS token, bos_id is null: choose a tokenizer with one, or set"
            " backbone.bos=none (token 0 is then given, not scored)"
        )
    return bos_id


def _model_config(name: str | None, config: dict[str, Any] | None, vocab_size: int) -> PretrainedConfig:
    if (name is None) == (config is None):
        raise ValueError(
            f"backbone.name {name!r} and backbone.config {'given' if config else 'null'}: give exactly one, a name to"
            " load a pretrained model, or a config (with model_type) to start from scratch"
        )
    if name is not None:
        model_config = _pretrained_config(name)
    else:
        keywords = dict(config or {})
        if "model_type" not in keywords:
            raise ValueError(f"backbone.config has no model_type: add one of {', '.join(FAMILIES)}")
        # Hugging Face's defaults for special ids belong to its own vocabularies.
        special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        model_config = _config_for(keywords.pop("model_type"), {**special, **keywords, "vocab_size": vocab_size})
    family_of(model_config)
    return model_config


def _config_for(model_type: str, keywords: dict[str, Any]) -> PretrainedConfig:
    if model_type not in CONFIG_MAPPING_NAMES:
        raise ValueError(f"model type {model_type!r} is unknown to transformers: choose one of {', '.join(FAMILIES)}")
    known = AutoConfig.for_model(model_type)
    family_of(known)
    unknown = [key for key in keywords if not hasattr(known, key)]
    if unknown:
        raise ValueError(
            f"backbone.config.{unknown[0]} is no setting of {model_type}: see transformers' {model_type} config"
        )
    return AutoConfig.for_model(model_type, **keywords)


def _pretrained_config(name: str) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, HFValidationError) as error:
        raise ValueError(
            f"backbone.name {name!r} is neither a local folder with a config.json nor a model that the hub gives:"
            " check the name, or download it elsewhere and give the folder"
        ) from error


def _build(name: str | None, config: PretrainedConfig, attention: str) -> PreTrainedModel:
    if name is None:
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return _load_pretrained(name, config, attention)


def _load_pretrained(name: str, config: PretrainedConfig, attention: str) -> PreTrainedModel:
    """Load every weight of a pretrained model, none missing, left over or of another shape."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            attn_implementation=attention,
            dtype=torch.float32,  # master weights; mixed precision is the trainer's business
            local_files_only=Path(name).is_dir(),
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise ValueError(f"backbone.name {name!r} holds damaged weights ({error}): download them again") from error
    except RuntimeError as error:  # shapes, as transformers reports them
        raise ValueError(f"backbone.name {name!r}: its weights do not fit its config.json ({error})") from error
    except OSError as error:
        raise ValueError(f"backbone.name {name!r}: {error}") from error
    model: PreTrainedModel
    model, report = loaded
    for kind, keys in (("lacks", report["missing_keys"]), ("has the unknown", report["unexpected_keys"])):
        if keys:
            raise ValueError(
                f"backbone.name {name!r} {kind} weight {min(keys)}: its weights are not those of its config.json;"
                " released DiffuGPT and DiffuLLaMA checkpoints come in through `dlmkit import`"
            )
    return model


def _resize(model: PreTrainedModel, vocab_size: int, name: str | None) -> None:
    """Give the embeddings `vocab_size` rows; new ones are the mean of the old plus N(0, 1/D) noise.

    Source: the initialisation of the mask row in the code of arXiv 2410.17891 (appendix B.2).
    """
    old = int(_token_tables(model)[0].weight.shape[0])
    if name is not None and vocab_size > old + NEW_ROWS:
        raise ValueError(
            f"the tokenizer has {vocab_size} tokens with the mask, {name!r} has embeddings for {old}: set"
            " tokenizer=huggingface and tokenizer.name to the model's own tokenizer"
        )
    if old >= vocab_size:
        return
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    tables = {id(module.weight): module.weight for module in _token_tables(model)}
    with torch.no_grad():
        for table in tables.values():
            noise = torch.randn_like(table[old:]) / math.sqrt(table.shape[1])
            table[old:] = table[:old].mean(0) + noise


def _token_tables(model: PreTrainedModel) -> list[Any]:
    """Return the input embedding and the head; one table twice where they are tied."""
    return [model.get_input_embeddings(), model.get_output_embeddings()]


def _embeddings(model: PreTrainedModel) -> list[Any]:
    """Return token tables and learned positions: what is looked up, or is the head."""
    return _token_tables(model) + [module for module in model.modules() if isinstance(module, nn.Embedding)]
