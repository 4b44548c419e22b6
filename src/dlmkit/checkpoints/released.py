"""The released DiffuGPT and DiffuLLaMA checkpoints (arXiv 2410.17891): their layouts, and the way in.

DiffuGPT's weights carry the names of the module that wrapped GPT-2 in training; DiffuLLaMA's those of LLaMA. Neither
config.json says that the model is bidirectional, and the one of DiffuGPT-M counts one row of the embedding too few.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from dlmkit.backbones.hf.weight_files import shards_of
from dlmkit.checkpoints.folder import check_free, write_folder
from dlmkit.config import compose
from dlmkit.data.tokenizers.huggingface import HuggingFace

HUB = "diffusionfamily"
RELEASED = ("diffugpt-s", "diffugpt-m", "diffullama")
TOKENIZER_CLASSES = {"gpt2": "GPT2TokenizerFast", "llama": "LlamaTokenizerFast"}
MASK_IDS = {("gpt2", 50257): 10541, ("gpt2", 50258): 50257, ("llama", 32000): 811}
"""(model type, rows of the embedding) -> mask id: "------------", a new row, the Cyrillic "ти"."""


@dataclass(frozen=True)
class Layout:
    """How published weights are named.

    Attributes:
        rename: a published name to transformers'; ``None`` for buffers that are not weights.
        head: transformers' name of the output head.
        embedding: transformers' name of the token embedding.
        default_length: training length in tokens, where config.json has none.
    """

    rename: Callable[[str], str | None]
    head: str
    embedding: str
    default_length: int


def _gpt2_name(name: str) -> str | None:
    if name.endswith((".attn.bias", ".attn.masked_bias")):
        return None
    if name == "embed_tokens.weight":
        return "transformer.wte.weight"
    return name.replace("denoise_model.", "transformer.", 1) if name.startswith("denoise_model.") else name


def _llama_name(name: str) -> str | None:
    if name.endswith(".rotary_emb.inv_freq"):
        return None
    if name == "embed_tokens.weight":
        return "model.embed_tokens.weight"
    return name.replace("denoise_model.", "model.", 1) if name.startswith("denoise_model.") else name


LAYOUTS = {
    "gpt2": Layout(_gpt2_name, "lm_head.weight", "transformer.wte.weight", 512),
    "llama": Layout(_llama_name, "lm_head.weight", "model.embed_tokens.weight", 2048),
}


def import_released(source: str, folder: Path) -> None:
    """Turn a released checkpoint into a folder that transformers and dlmkit open.

    Args:
        source: "diffugpt-s", "diffugpt-m" or "diffullama" (fetched from the hub), or a local copy of one of them.
        folder: where it goes; must not hold anything yet.

    Raises:
        ValueError: no such checkpoint, no network, damaged files, keys or shapes that are not those of the layout.
    """
    check_free(folder)
    place = _fetch(source)
    config = _read_config(place)
    layout = LAYOUTS[config.model_type]
    weights = _rename(read_weights(place), layout, place)
    config.vocab_size = weights[layout.embedding].shape[0]
    config.is_causal = False
    head = weights.pop(layout.head, None)
    tied = head is None or torch.equal(head, weights[layout.embedding])
    config.tie_word_embeddings = tied
    if head is not None and not tied:
        weights[layout.head] = head
    model = _build(config, weights, layout, place)
    mask_id = _mask_id(place, config)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        tokenizer = _tokenizer(place, partial / "tokenizer", config.model_type, mask_id)
        write_folder(partial / "model", model, _describe(config, layout, tokenizer), tokenizer)
        (partial / "model").rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fetch(source: str) -> Path:
    if Path(source).is_dir():
        return Path(source)
    if source not in RELEASED:
        raise ValueError(f"{source!r} is neither a folder nor one of {', '.join(RELEASED)}: name one of these")
    try:
        return Path(snapshot_download(f"{HUB}/{source}"))
    except OSError as error:  # what every failure of the hub is
        raise ValueError(
            f"{HUB}/{source} could not be fetched ({type(error).__name__}): download it where there is network with"
            f" `hf download {HUB}/{source} --local-dir DIR`, and run `dlmkit import DIR ...`"
        ) from error


def _read_config(place: Path) -> PretrainedConfig:
    path = place / "config.json"
    if not path.is_file():
        raise ValueError(f"{place} has no config.json: name the folder of a released checkpoint")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    model_type = content.pop("model_type", None)
    if model_type not in LAYOUTS:
        raise ValueError(f"{path} has model_type {model_type!r}: released checkpoints are of {', '.join(LAYOUTS)}")
    return AutoConfig.for_model(model_type, **content)


def read_weights(place: Path) -> dict[str, Tensor]:
    """Return every tensor of a folder's safetensors files, or of its .bin files.

    Raises:
        ValueError: no such files, a damaged one, or an index that names a file that is not there.
    """
    for index in place.glob("*.index.json"):
        absent = [shard for shard in shards_of(index) if not (place / shard).is_file()]
        if absent:
            raise ValueError(f"{index} names {absent[0]}, which is not there: the download is not complete")
    files = sorted(place.glob("*.safetensors")) or sorted(place.glob("*.bin"))
    if not files:
        raise ValueError(f"{place} holds no *.safetensors or *.bin file: name the folder of a released checkpoint")
    weights: dict[str, Tensor] = {}
    for file in files:
        weights.update(_read_safetensors(file) if file.suffix == ".safetensors" else _read_bin(file))
    return weights


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}): download it again") from error


def _read_bin(file: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{file} is damaged: download it again") from error
    return weights


def _rename(weights: dict[str, Tensor], layout: Layout, place: Path) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        new = layout.rename(name)
        if new in renamed:
            raise ValueError(f"{place} holds {new} twice, once as {name}: it is not a released checkpoint")
        if new is not None:
            renamed[new] = tensor
    if layout.embedding not in renamed:
        raise ValueError(f"{place} lacks the token embedding ({layout.embedding}): it is not a released checkpoint")
    return renamed


def _build(config: PretrainedConfig, weights: dict[str, Tensor], layout: Layout, place: Path) -> PreTrainedModel:
    """Return the model that `config` describes with exactly these weights, in their own precision."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    own = {name: value for name, value in model.state_dict().items() if not _is_tied(name, config, layout)}
    for kind, names in (("lacks", own.keys() - weights.keys()), ("has an unexpected", weights.keys() - own.keys())):
        if names:
            raise ValueError(f"{place} {kind} weight {min(names)}: it does not fit its config.json")
    for name, value in own.items():
        if weights[name].shape != value.shape:
            raise ValueError(
                f"{place} has {name} of shape {tuple(weights[name].shape)}, its config.json needs {tuple(value.shape)}"
            )
    dtype = weights[layout.embedding].dtype
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    head = {layout.head: weights[layout.embedding]} if config.tie_word_embeddings else {}
    model.load_state_dict({**weights, **head}, assign=True)
    model.tie_weights()
    return model


def _is_tied(name: str, config: PretrainedConfig, layout: Layout) -> bool:
    return bool(config.tie_word_embeddings) and name == layout.head


def _mask_id(place: Path, config: PretrainedConfig) -> int | str:
    """Return the mask's id for the sizes that were released, or the token that the tokenizer names."""
    known = MASK_IDS.get((config.model_type, config.vocab_size))
    if known is not None:
        return known
    special = place / "special_tokens_map.json"
    if special.is_file():
        mask = json.loads(special.read_text(encoding="utf-8")).get("mask_token")
        if mask is not None:
            return str(mask["content"] if isinstance(mask, dict) else mask)
    raise ValueError(
        f"{place} has {config.vocab_size} rows and names no mask token: expected one of"
        f" {', '.join(str(rows) for _, rows in MASK_IDS)} rows, or a mask_token in special_tokens_map.json"
    )


def _tokenizer(place: Path, scratch: Path, model_type: str, mask: int | str) -> HuggingFace:
    """Load the tokenizer under the class that transformers knows: the published one names the training code's."""
    scratch.mkdir(parents=True)
    for file in place.iterdir():
        if file.is_file() and file.suffix not in (".safetensors", ".bin") and file.name != "config.json":
            shutil.copy(file, scratch / file.name)
    settings = scratch / "tokenizer_config.json"
    content = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    settings.write_text(json.dumps({**content, "tokenizer_class": TOKENIZER_CLASSES[model_type]}), encoding="utf-8")
    try:
        AutoTokenizer.from_pretrained(scratch, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{place} holds no tokenizer that transformers reads: download all of its files") from error
    tokenizer = HuggingFace(str(scratch), mask=mask)
    return tokenizer


def _describe(config: PretrainedConfig, layout: Layout, tokenizer: HuggingFace) -> Any:
    """Return the configuration with which the checkpoint was trained, as a run's config.yaml would hold it."""
    tasks = config.to_dict().get("task_specific_params") or {}
    length = tasks.get("text-generation", {}).get("max_length", layout.default_length)
    vocab = (
        f"{{size: {config.vocab_size}, mask_id: {tokenizer.mask_id}, bos_id: {tokenizer.bos_id},"
        f" eos_id: {tokenizer.eos_id}}}"
    )
    overrides = ["family=absorbing", "backbone.config=null", "backbone.bos=none", f"length={length}", f"vocab={vocab}"]
    described = compose(overrides, Path("."))
    described.backbone.name = "."
    OmegaConf.set_struct(described, False)
    return described
