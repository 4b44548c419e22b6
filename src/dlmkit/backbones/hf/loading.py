"""Building or loading a transformers causal LM: configuration, weights, and rows for new tokens."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from dlmkit.backbones.base import check_memory
from dlmkit.backbones.deferred import deferring
from dlmkit.backbones.hf.deferred_weights import defer_pretrained
from dlmkit.backbones.hf.families import FAMILIES, family_of
from dlmkit.backbones.hf.weight_files import shards_of

UNSUITABLE = (AttributeError, KeyError, RuntimeError, TypeError, ValueError, ZeroDivisionError)
"""What transformers raises for settings that it does not check."""

DIVISIONS = (
    ("n_embd", "n_head"),
    ("hidden_size", "num_attention_heads"),
    ("num_attention_heads", "num_key_value_heads"),
)
"""Settings of which the first is a multiple of the second."""

NO_SHAPE = {"transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype", "quantization_config"}
"""Keys of a config.json that say nothing of a network."""

NEW_ROWS = 1024
"""Rows that may be added to a pretrained embedding: the mask token's, and those of tokens that a user has added to the
model's tokenizer. A tokenizer with more is taken for that of another model."""


def model_config_of(name: str | None, config: dict[str, Any] | None, vocab_size: int) -> PretrainedConfig:
    """Return the configuration of a pretrained model, or that of a new one.

    Raises:
        ValueError: not exactly one of `name` and `config`; an unknown name, model type or setting.
    """
    if (name is None) == (config is None):
        raise ValueError(
            f"backbone.name {name!r} and backbone.config {'given' if config else 'null'}: give exactly one, a name to"
            " load a pretrained model (experiment=adapt, or backbone.config=null), or a config to start from scratch"
        )
    if name is not None:
        model_config = _pretrained_config(name)
    else:
        keywords = dict(config or {})
        if "model_type" not in keywords:
            raise ValueError(f"backbone.config has no model_type: add one of {', '.join(FAMILIES)}")
        # Hugging Face's defaults for special ids belong to its own vocabularies.
        special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        rows = max(vocab_size, int(keywords.pop("vocab_size", 0)))  # a pretrained model may have padding rows
        model_config = _config_for(keywords.pop("model_type"), {**special, **keywords, "vocab_size": rows})
    family_of(model_config)
    return model_config


def config_again(config: PretrainedConfig) -> dict[str, Any]:
    """Return the `backbone.config` that makes the network of a configuration again, rows of its embeddings among it."""
    known = AutoConfig.for_model(config.model_type)
    keys = json.loads(config.to_json_string(use_diff=True))
    kept = {key: value for key, value in keys.items() if key not in NO_SHAPE and hasattr(known, key)}
    return {**kept, "model_type": config.model_type, "vocab_size": config.vocab_size}


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
    for whole, parts in DIVISIONS:
        if whole in keywords and parts in keywords and keywords[whole] % keywords[parts]:
            raise ValueError(
                f"backbone.config.{whole} {keywords[whole]} is no multiple of {parts} {keywords[parts]}: choose a"
                f" multiple of it"
            )
    try:
        return AutoConfig.for_model(model_type, **keywords)
    except UNSUITABLE as error:
        raise _unsuitable(model_type, error) from error


def _unsuitable(model_type: str, error: Exception) -> ValueError:
    kind = type(error).__name__
    return ValueError(
        f"backbone.config: transformers makes no {model_type} of it ({kind}: {error}): mend that setting, see"
        f" transformers' {model_type} config"
    )


def _pretrained_config(name: str) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, HFValidationError) as error:
        raise ValueError(
            f"backbone.name {name!r} is neither a local folder with a config.json nor a model that the hub gives:"
            " check the name, or download it elsewhere and give the folder"
        ) from error
    except ValueError as error:  # what transformers raises for types that it does not have
        raise ValueError(
            f"backbone.name {name!r} is of a type that transformers has no class for, and code that comes with a model"
            f" is not run: choose a model of one of {', '.join(FAMILIES)}"
        ) from error


def build_model(name: str | None, config: PretrainedConfig, attention: str) -> PreTrainedModel:
    """Return the pretrained model `name`, or a new one from `config`.

    Raises:
        ValueError: weights that are damaged, or not those of the configuration; settings of which there is no model.
    """
    if name is not None:
        return _load_pretrained(name, config, attention)
    check_memory(12 * config.num_hidden_layers * config.hidden_size**2 + config.vocab_size * config.hidden_size)
    try:
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    except UNSUITABLE as error:
        raise _unsuitable(config.model_type, error) from error


def _load_pretrained(name: str, config: PretrainedConfig, attention: str) -> PreTrainedModel:
    """Load every weight of a pretrained model, none missing, left over or of another shape."""
    _check_files(Path(name))
    deferred = deferring()
    if deferred is not None and (model := defer_pretrained(deferred, name, config, attention)) is not None:
        return model
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            attn_implementation=attention,
            dtype=torch.float32,  # master weights; mixed precision is the trainer's business
            local_files_only=Path(name).is_dir(),
            trust_remote_code=False,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise ValueError(f"backbone.name {name!r} holds damaged weights ({error}): download them again") from error
    except RuntimeError as error:  # shapes, as transformers reports them
        raise ValueError(f"backbone.name {name!r}: its weights do not fit its config.json ({error})") from error
    except OSError as error:
        raise ValueError(f"backbone.name {name!r}: {error}") from error
    model, report = loaded
    for kind, keys in (("lacks", report["missing_keys"]), ("has an unexpected", report["unexpected_keys"])):
        if keys:
            raise ValueError(
                f"backbone.name {name!r} {kind} weight {min(keys)}: its weights are not those of its config.json;"
                " released DiffuGPT and DiffuLLaMA checkpoints come in through `dlmkit import`"
            )
    result: PreTrainedModel = model
    return result


def _check_files(folder: Path) -> None:
    """Check that a local model has its weights in its own folder.

    Raises:
        ValueError: an index of weights that names files elsewhere, or an adapter, whose model is elsewhere.
    """
    for index in folder.glob("*.index.json"):
        shards_of(index)
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder} holds an adapter, not a model: merge it into its model, and name the result")


def resize_embeddings(model: PreTrainedModel, vocab_size: int, name: str | None) -> str | None:
    """Give the embeddings `vocab_size` rows; new ones are the mean of the old plus N(0, 1/D) noise.

    Returns a line where a pretrained model gets more of them than one for the mask, else ``None``.

    Source: the initialisation of the mask row in the code of arXiv 2410.17891 (appendix B.2).
    """
    old = int(_token_tables(model)[0].weight.shape[0])
    if name is not None and vocab_size > old + NEW_ROWS:
        raise ValueError(
            f"the tokenizer has {vocab_size} tokens with the mask, {name!r} has embeddings for {old}: set"
            " tokenizer=huggingface and tokenizer.name to the model's own tokenizer"
        )
    if old >= vocab_size:
        return None
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    tables = {id(module.weight): module.weight for module in _token_tables(model)}
    deferred = deferring()
    with torch.no_grad():
        for table in tables.values():
            noise = torch.randn(table.shape[0] - old, table.shape[1], dtype=table.dtype) / math.sqrt(table.shape[1])
            if deferred is not None:
                deferred.change(table, partial(_add_rows, noise=noise))
            else:
                _add_rows(table, noise)
    if name is None or vocab_size == old + 1:
        return None
    return (
        f"backbone.name {name!r} has embeddings for {old:,} tokens and the tokenizer {vocab_size:,} with the mask:"
        f" {vocab_size - old:,} rows are added, which have to be learned"
    )


def _add_rows(table: Tensor, noise: Tensor) -> None:
    """Let the last rows of a table be the mean of the others plus noise."""
    old = table.shape[0] - noise.shape[0]
    table[old:] = table[:old].mean(0) + noise


def _token_tables(model: PreTrainedModel) -> list[Any]:
    """Return the input embedding and the head; one table twice where they are tied."""
    return [model.get_input_embeddings(), model.get_output_embeddings()]


def embeddings_of(model: PreTrainedModel) -> list[Any]:
    """Return token tables and learned positions: what is looked up, or is the head."""
    return _token_tables(model) + [module for module in model.modules() if isinstance(module, nn.Embedding)]
