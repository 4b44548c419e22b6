"""Any transformers causal LM as a backbone; every Hugging Face quirk lives here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from dlmkit.backbones.attention import attention_mask
from dlmkit.backbones.base import Backbone
from dlmkit.backbones.prediction import Head, Prediction

FAMILIES = ("gpt2", "llama")
"""Model types that the tests have seen obey `config.is_causal`, causal and bidirectional, without a leak."""

ATTENTIONS = ("sdpa", "eager", "flash_attention_2")


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
        attention: "sdpa", "eager" or "flash_attention_2".
        name: hub name or local folder of a pretrained model; ``None`` builds `config` from scratch.
        config: keywords of the model's configuration, `model_type` among them, when `name` is ``None``.

    Raises:
        ValueError: a family that is not known to obey, a name that cannot be found, flash attention with masks.
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
        name: str | None,
        config: dict[str, Any] | None,
    ) -> None:
        super().__init__(vocab_size, mask_id, causal, shift, _bos_to_prepend(bos, bos_id, shift))
        if attention not in ATTENTIONS:
            raise ValueError(f"backbone.attention {attention!r} is unknown: choose one of {', '.join(ATTENTIONS)}")
        model_config = _model_config(name, config, vocab_size)
        model_config.is_causal = causal
        self.model: PreTrainedModel = _build(name, model_config, attention)
        _resize(self.model, vocab_size)
        # The kit runs the trunk and the head apart, so that the head runs only where somebody asks.
        self.trunk = self.model.base_model

    def forward(self, x_t: Tensor, t: Tensor, segments: Tensor | None = None) -> Prediction:
        """Return the prediction for x_t (int64 [B, L]); t is not read."""
        self.check_length(x_t.shape[1])
        ids, read_segments = self.read(x_t, segments)
        length = ids.shape[1]
        mask = attention_mask(
            length,
            ids.device,
            causal=self.causal,
            segments=read_segments,
            visible=self.visibility(length, ids.device),
        )
        outputs = self.trunk(input_ids=ids, attention_mask=self._kernel_mask(mask), use_cache=False)
        return Prediction(self.align(outputs.last_hidden_state, x_t.shape[1]), self.head, self.mask_id)

    @property
    def head(self) -> Head:
        """The output head, with what the family does to its logits."""
        output = self.model.get_output_embeddings()
        assert isinstance(output, nn.Linear)
        # Rows beyond the tokenizer's ids are padding that some models carry; they are never predicted.
        return Head(output.weight[: self.vocab_size], None if output.bias is None else output.bias[: self.vocab_size])

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

    def _kernel_mask(self, mask: Tensor | None) -> Tensor | None:
        implementation = self.model.config._attn_implementation
        if mask is None or implementation == "sdpa":
            return mask
        if implementation == "flash_attention_2":
            raise ValueError(
                "backbone.attention=flash_attention_2 takes no dense mask, which annealing and documents kept apart"
                " need: set backbone.attention=sdpa, or data.keep_documents_apart=false and no annealing"
            )
        # Eager attention adds its mask to the scores.
        dtype = self.model.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


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
    _check_family(model_config.model_type)
    return model_config


def _check_family(model_type: str) -> None:
    if model_type not in FAMILIES:
        raise ValueError(
            f"model type {model_type!r} is not known to turn bidirectional by config.is_causal:"
            f" choose one of {', '.join(FAMILIES)}"
        )


def _config_for(model_type: str, keywords: dict[str, Any]) -> PretrainedConfig:
    _check_family(model_type)
    known = AutoConfig.for_model(model_type)
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
    weights_dtype = torch.float32  # master weights; mixed precision is the trainer's business
    return AutoModelForCausalLM.from_pretrained(
        name, config=config, attn_implementation=attention, dtype=weights_dtype, local_files_only=Path(name).is_dir()
    )


def _resize(model: PreTrainedModel, vocab_size: int) -> None:
    """Give the embeddings `vocab_size` rows; new ones are the mean of the old plus N(0, 1/D) noise.

    Source: the initialisation of the mask row in the code of arXiv 2410.17891 (appendix B.2).
    """
    old = int(_token_tables(model)[0].weight.shape[0])
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
