"""Hugging Face folders: written by `dlmkit export` and `dlmkit import`, read wherever a checkpoint is expected.

Such a folder opens in plain transformers, bidirectional, without dlmkit: config.json carries `is_causal: false`. Beside
the model it has dlmkit.yaml, the part of a run's config.yaml that inference needs (shift, bos, noise, ids).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dlmkit.checkpoints.parts import read_parts
from dlmkit.config import compose
from dlmkit.data.tokenizers.base import MASK_TEXT, STATE_FILE, Tokenizer, load_tokenizer
from dlmkit.data.tokenizers.huggingface import HuggingFace

CONFIG = "dlmkit.yaml"
SECTIONS = ("length", "causal", "vocab", "backbone", "schedule", "process", "objective", "sampler", "family")


def is_folder(path: Path) -> bool:
    """Return whether `path` is a Hugging Face folder rather than a run's."""
    return (path / "config.json").is_file() and not (path / "config.yaml").is_file()


def write_folder(folder: Path, model: PreTrainedModel, config: DictConfig, tokenizer: Tokenizer | None) -> None:
    """Write model, tokenizer and dlmkit.yaml into a new folder.

    Args:
        folder: must not hold anything yet.
        model: adapters merged.
        config: resolved configuration of a run.
        tokenizer: the run's, or ``None``.

    Raises:
        ValueError: the folder is in use.
    """
    check_free(folder)
    model.config.is_causal = bool(config.causal)
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save(folder)
        _for_transformers(tokenizer, folder)
    kept = {key: config[key] for key in SECTIONS if key in config}
    content: Any = OmegaConf.to_container(OmegaConf.create(kept), resolve=True)
    if "name" in content["backbone"]:
        content["backbone"]["name"], content["backbone"]["config"] = ".", None
    if "lora" in content["backbone"]:
        content["backbone"]["lora"] |= {"rank": 0, "quantize": None}  # merged
    OmegaConf.save(OmegaConf.create(content), folder / CONFIG)


def check_free(folder: Path) -> None:
    """Raise ValueError when `folder` is in use."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"{folder} is in use: name a folder that does not exist yet")


def read_config(folder: Path, trust: Sequence[str] = ()) -> tuple[DictConfig, Tokenizer | None]:
    """Return the configuration and the tokenizer of a Hugging Face folder.

    A folder without dlmkit.yaml is read by its config.json: as an autoregressive model, unless `is_causal` is
    false, and then an absorbing diffusion model with the tokenizer's own mask token.

    Args:
        folder: the folder.
        trust: import paths that its parts may have, beside the kit's own.

    Raises:
        ValueError: a damaged file, or a part that is not trusted.
    """
    if not (folder / CONFIG).is_file():
        return _guess_config(folder)
    config = read_parts(folder / CONFIG, trust)
    config.backbone.name = str(folder)  # whatever stands there: the weights are those of this folder
    return config, load_tokenizer(folder, trust) if (folder / STATE_FILE).is_file() else None


def _guess_config(folder: Path) -> tuple[DictConfig, Tokenizer]:
    model = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    causal = model.get("is_causal", True)
    tokenizer = HuggingFace(str(folder), mask="new")
    if not causal:
        mask = tokenizer.pretrained.mask_token_id
        if mask is None:
            raise ValueError(
                f"{folder} is bidirectional and its tokenizer names no mask token: bring it in with `dlmkit import`"
            )
        tokenizer = HuggingFace(str(folder), mask=mask)
    family = "ar" if causal else "absorbing"
    vocab = f"{{size: {tokenizer.vocab_size}, mask_id: {tokenizer.mask_id}, bos_id: {tokenizer.bos_id},"
    overrides = [f"family={family}", "backbone.config=null", f"vocab={vocab} eos_id: {tokenizer.eos_id}}}"]
    config = compose(overrides, folder)
    config.backbone.name = str(folder)
    return config, tokenizer


def _for_transformers(tokenizer: Tokenizer, folder: Path) -> None:
    """Make the folder's tokenizer known to transformers, where it has a form for it; its mask is the trained one."""
    fast = tokenizer.for_transformers()
    if fast is None:
        return
    if fast.mask_token_id != tokenizer.mask_id:
        new = tokenizer.mask_id == len(fast)
        text = _unused_text(fast) if new else fast.convert_ids_to_tokens(tokenizer.mask_id)
        fast.add_special_tokens({"mask_token": text})
    assert fast.mask_token_id == tokenizer.mask_id
    assert isinstance(fast, PreTrainedTokenizerFast) or not fast.is_fast
    fast.save_pretrained(folder)


def _unused_text(fast: PreTrainedTokenizerBase) -> str:
    """Return a text for a new mask token that no token has: a model's own "[MASK]" may be another one."""
    known = fast.get_vocab()
    numbered = (f"[MASK_{index}]" for index in itertools.count(1))
    return next(text for text in itertools.chain([MASK_TEXT], numbered) if text not in known)
