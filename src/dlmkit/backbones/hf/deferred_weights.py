"""Pretrained weights that are read one by one, once the network is split, and of each only what a process keeps."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from dlmkit.backbones.deferred import DeferredWeights
from dlmkit.backbones.hf.weight_files import safetensors_of
from dlmkit.notices import notice


def defer_pretrained(
    deferred: DeferredWeights, name: str, config: PretrainedConfig, attention: str
) -> PreTrainedModel | None:
    """Return the pretrained model `name` without its weights, which `deferred` reads from its safetensors files.

    ``None`` where they cannot be read so: there are no such files, or their names and shapes are not the model's.
    """
    drawing, deferred.drawing = deferred.drawing, False
    try:
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    finally:
        deferred.drawing = drawing
    try:
        places = _places(safetensors_of(name))
    except SafetensorError as error:
        raise ValueError(f"backbone.name {name!r} holds damaged weights ({error}): download them again") from error
    keys = _keys(model, places)
    if keys is None:
        notice(f"backbone.name {name!r} has no safetensors files with its weights, so every process reads all of them")
        return None
    parameters = dict(model.named_parameters())
    for parameter, key in keys.items():
        deferred.read_from(parameters[parameter], partial(_rows, places[key][0], key))
    result: PreTrainedModel = model.eval()  # as from_pretrained gives it
    return result


def _places(files: list[Path]) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Return name -> (file, shape) of every tensor in some files."""
    places: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            places |= {key: (file, tuple(tensors.get_slice(key).get_shape())) for key in tensors.keys()}  # noqa: SIM118
    return places


def _keys(model: PreTrainedModel, places: dict[str, tuple[Path, tuple[int, ...]]]) -> dict[str, str] | None:
    """Return the name in the files of each parameter, or ``None`` where one is missing, left over or does not fit.

    Some files have the names of the model without its head.
    """
    prefix = f"{model.base_model_prefix}."
    known = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    bare = not any(key.startswith(prefix) for key in places)
    key_of = {name: name.removeprefix(prefix) if bare else name for name in known}
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    left = [key for key in places.keys() - set(key_of.values()) if not any(one.search(key) for one in ignored)]
    keys = {name: key_of[name] for name, _ in model.named_parameters()}
    fits = all(key in places and places[key][1] == tuple(known[name].shape) for name, key in keys.items())
    return keys if fits and not left else None


def _rows(file: Path, key: str, rows: slice) -> Tensor:
    with safe_open(file, framework="pt") as tensors:
        place = tensors.get_slice(key)
        result: Tensor = place[rows] if place.get_shape() else tensors.get_tensor(key)
        return result
