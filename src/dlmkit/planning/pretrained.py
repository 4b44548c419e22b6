"""Shapes of pretrained models that experiments name, so that a plan downloads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from dlmkit.backbones.hf.loading import NO_SHAPE

_GPT2 = {"model_type": "gpt2", "vocab_size": 50_257, "n_positions": 1024}

KNOWN: Mapping[str, Mapping[str, Any]] = {
    "openai-community/gpt2": {**_GPT2, "n_layer": 12, "n_head": 12, "n_embd": 768},
    "openai-community/gpt2-medium": {**_GPT2, "n_layer": 24, "n_head": 16, "n_embd": 1024},
    "meta-llama/Llama-2-7b-hf": {
        "model_type": "llama",
        "vocab_size": 32_000,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
}
"""config.json of the models that conf/ and experiments/ name, as far as it differs from transformers' defaults."""


def shape_of(name: str) -> dict[str, Any]:
    """Return `backbone.config` of a pretrained model, its `vocab_size` among the keys.

    Args:
        name: hub name or local folder; on the hub only what is known here or was downloaded before is found.

    Raises:
        ValueError: it would have to be downloaded.
    """
    if name in KNOWN:
        return dict(KNOWN[name])
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        where = "has no config.json that transformers reads" if Path(name).is_dir() else "is not on this machine"
        raise ValueError(
            f"backbone.name {name!r} {where}, and a plan downloads nothing: download its config.json (`hf download"
            f" {name} config.json --local-dir FOLDER`) and give backbone.name=FOLDER, or give the shape as"
            " backbone.name=null with backbone.config"
        ) from error
    keys = config.to_diff_dict()
    kept = {key: value for key, value in keys.items() if key not in NO_SHAPE and not key.endswith("_token_id")}
    return {**kept, "model_type": config.model_type, "vocab_size": config.vocab_size}
